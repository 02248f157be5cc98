"""`python -m perf [NAME ...]`: run the performance tests, print their tables, keep the numbers in perf/results/."""

import sys

from perf import training_step

SUBJECTS = {"training_step": training_step}


def main(names):
    for name in names or SUBJECTS:
        if name not in SUBJECTS:
            print(f"perf: {name!r} is not one of {', '.join(SUBJECTS)}", file=sys.stderr)
            return 2
        print(SUBJECTS[name].main(), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
