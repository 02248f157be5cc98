"""`python -m perf [NAME ...]`: run performance tests, print their tables, keep the numbers in perf/results/.

Without a name, all of them, one after another. Figures go to runs/perf/.
"""

import importlib
import sys

from perf.harness import PEERS, peer

SUBJECTS = (
    "training_step", "prediction", "embedding", "losses", "kernels", "int8", "int8_accuracy", "low_bits", "post_training",
    "fewer_bits", "qat_cost", "bits_search", "distill_cost", "distill_ranking", "distill_mnist", "prune_mnist",
    "deep_compression", "sparse", "choose", "prune_cost", "memory", "startup", "scaling", "ladders",
)  # fmt: skip


def main(names):
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown:
        print(f"perf: {', '.join(map(repr, unknown))}: not one of {', '.join(SUBJECTS)}", file=sys.stderr)
        return 2
    missing = [name for name in PEERS if peer(name) is None]
    if missing:
        print(f"not installed, and skipped: {', '.join(missing)} (make perf-peers installs them)\n")
    for name in names or SUBJECTS:
        print(importlib.import_module(f"perf.{name}").main(), end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
