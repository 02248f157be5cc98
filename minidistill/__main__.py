"""``python -m minidistill`` is the command ``minidistill``."""

import sys

from .cli import main

sys.exit(main())
