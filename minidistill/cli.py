"""The command line: ``minidistill demo | inspect | evaluate | fetch | bench``.

A user's mistake ends in one clear line and exit code 2, never in a traceback. Everything the commands do can be done
from Python with the public names; this file only reads arguments and prints.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import datasets

EXAMPLES = """\
examples:
  minidistill demo                                  train, distil, prune, quantize on the digits (runs/demo/)
  minidistill inspect runs/demo/pruned-80-int8.npz  what a file holds
  minidistill evaluate runs/demo/teacher.npz        loss and accuracy on the digits' test set
  minidistill fetch mnist --to data/mnist           download, verify, resume
  minidistill evaluate model.npz --data mnist       ... on MNIST
  minidistill bench                                 training steps and predictions on this machine
"""


def main(arguments=None):
    """Run one command. Returns the exit code: 0, or 2 for a user's mistake, or what shells give for the signal that
    ended it: 130 for Ctrl-C, 141 for a reader such as ``head`` that has enough."""
    try:
        try:
            options = _parser().parse_args(arguments)
            options.run(options)
        finally:
            _flush()
    except KeyboardInterrupt:
        print("minidistill: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except (ValueError, OSError) as error:
        print(f"minidistill: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _flush():
    """Write out what was printed, while an error can still be told; after one, Python would try again at its own end."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _one_line(error):
    """The three lines of an error of ours on one; of the system's errors, what happened and to which file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'error'}: {error.strerror}"
    return " ".join(str(error).split("\n"))


def _parser():
    parser = argparse.ArgumentParser(
        prog="minidistill",
        description="Make neural networks smaller: distillation, pruning, int8.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = sys.modules[__package__].__version__  # the package's own, whatever is installed elsewhere
    parser.add_argument("--version", action="version", version=f"minidistill {version}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, run, text in (
        ("demo", _demo, "the whole pipeline on the digits that ship with the package"),
        ("inspect", _inspect, "what a model file holds, without running it"),
        ("evaluate", _evaluate, "loss and accuracy of a model file"),
        ("fetch", _fetch, "download a data set"),
        ("bench", _bench, "time training steps and predictions on this machine"),
    ):
        command = commands.add_parser(
            name, help=text, description=text.capitalize() + ".", epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(run=run)
        _ARGUMENTS[name](command)
    return parser


def _positive(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


_ARGUMENTS = {
    "demo": lambda c: (
        c.add_argument("--out", default="runs/demo", help="folder for models, figure and ledger.json (%(default)s)"),
        c.add_argument("--seeds", type=_positive, default=5, help="seeds of the label study (%(default)s)"),
        c.add_argument("--quiet", action="store_true", help="no progress bar, which only a terminal shows"),
    ),
    "inspect": lambda c: c.add_argument("file", help="a .npz that md.save wrote"),
    "evaluate": lambda c: (
        c.add_argument("file", help="a .npz that md.save wrote"),
        c.add_argument("--data", default="digits", help="digits, mnist, fashion-mnist, or a .npz or .csv file"),
        c.add_argument("--split", choices=("test", "train"), default="test", help="which part (%(default)s)"),
    ),
    "fetch": lambda c: (
        c.add_argument("name", choices=("mnist", "fashion-mnist")),
        c.add_argument("--to", metavar="DIR", help="folder (default: where load_mnist looks by itself)"),
    ),
    "bench": lambda c: c.add_argument("--seconds", type=float, default=0.3, help="time for each number (%(default)s)"),
}


def _demo(options):
    from tqdm import tqdm

    from .pipeline import demo, steps
    from .training.progress import is_shown

    with tqdm(total=steps(options.seeds), disable=not is_shown(not options.quiet), file=sys.stderr,
              bar_format="{l_bar}{bar:24}| {elapsed}<{remaining} {desc}") as bar:  # fmt: skip

        def progress(text):
            bar.set_description_str(f"{text:<28}", refresh=False)
            bar.update()

        report = demo(options.out, options.seeds, progress)
    print(report)
    print(f"\nModels, figure (demo.png) and ledger.json are in {options.out}.")


def _inspect(options):
    from .nn.serialize import describe

    print(describe(options.file))


def _evaluate(options):
    from .nn.serialize import load
    from .training import evaluate

    model = load(options.file)
    data = _data(options.data, options.split)
    for name, value in evaluate(model, data).items():
        print(f"{name:<12} {value:.4f}")
    print(f"{'examples':<12} {len(data)}")


def _data(name, split):
    """A Dataset by name, or from a file. A file has no split."""
    loaders = {
        "digits": datasets.load_digits,
        "mnist": datasets.load_mnist,
        "fashion-mnist": datasets.load_fashion_mnist,
    }
    if name in loaders:
        train, test = loaders[name]()
        return test if split == "test" else train
    suffix = Path(name).suffix
    if suffix not in (".npz", ".csv"):
        raise ValueError(
            f"--data {name!r} was asked for.\nIt is one of {', '.join(loaders)}, or a .npz or .csv file.\n"
            "Write for example: --data mnist."
        )
    return datasets.load_npz(name) if suffix == ".npz" else datasets.load_csv(name)


def _fetch(options):
    folder = datasets.fetch(options.name, to=options.to)
    print(f"{options.name} is complete and verified in {folder}")


def _bench(options):
    from .bench import bench

    print(bench(options.seconds))
