"""What tests and lessons that multiply with NumPy must ignore on a Mac; the engine's own products are quiet."""

from __future__ import annotations

import platform

ALARMS = ["divide by zero", "overflow", "invalid value"]
IGNORED = [
    f"ignore:{alarm} encountered in {name}:RuntimeWarning"
    for alarm in (ALARMS if platform.system() == "Darwin" else [])
    for name in ("matmul", "dot")
]
STRICT = ["-W", "error", *(word for line in IGNORED for word in ("-W", line))]  # options of a Python of its own
