"""How large the engine is, against its budgets: code lines, without docstrings, comments and blank lines. `make size`.

Prints each file, the sums that have a budget, and "over budget" where one is exceeded. With ``--check`` that is an error
(exit status 1). `make size` does not check yet: the tree is on its way down to these numbers.
"""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

ENGINE = Path(__file__).resolve().parent.parent / "minidistill"
# Part: the most code lines that it may have, and what belongs to it, by the first part of a file's path.
ELSEWHERE = "lab", "interop", "sweeps.py"
BUDGETS = {
    "core (tensor.py, ops/)": (640, lambda top: top in ("tensor.py", "ops")),
    "engine (without lab/, interop/, sweeps)": (10_800, lambda top: top not in ELSEWHERE),
    "laboratory (lab/)": (1_400, lambda top: top == "lab"),
    "everything": (12_000, lambda top: True),
}
AFTERNOON = 2_000  # lines of the README's reading path, docstrings included
GUARDS = 12.0  # % of the code lines that may be `if` blocks ending in raise, outside checks.py


def code_lines(text):
    """Numbers of the lines that hold code, of one file's text."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines - {len(text.splitlines()) + 1}


def guard_lines(text):
    """Numbers of the code lines in `if` blocks whose last statement is a raise: refusals."""
    guards = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise):
            guards.update(range(node.lineno, node.body[-1].end_lineno + 1))
    return guards & code_lines(text)


def reading_path(readme):
    """[(file, name, lines)] of the functions and classes that the README's "Read it in an afternoon" lists.

    Raises
    ------
    LookupError
        If one of them does not exist.
    """
    section = readme.split("## Read it in an afternoon")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    path = []
    for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", "\n".join(rows)):
        tree = ast.parse((ENGINE / file).read_text())
        path += [(file, name, _length(tree, name)) for name in re.findall(r"`([\w.]+)`", names)]
    return path


def _length(tree, name):
    for part in name.split("."):
        kinds = ast.FunctionDef, ast.ClassDef
        found = [node for node in tree.body if isinstance(node, kinds) and node.name == part]
        if not found:
            raise LookupError(f"{name} is on the README's reading path, and does not exist")
        tree = found[0]
    return tree.end_lineno - tree.lineno + 1


def main(check=False):
    files = {path.relative_to(ENGINE).as_posix(): path.read_text() for path in sorted(ENGINE.rglob("*.py"))}
    counts = {name: len(code_lines(text)) for name, text in files.items()}
    for name, text in files.items():
        print(f"{name:<40} {counts[name]:>6} code {text.count(chr(10)):>6} lines")
    over = []
    for part, (most, belongs) in BUDGETS.items():
        count = sum(counts[name] for name in files if belongs(name.split("/")[0]))
        over += [part] * (count > most)
        print(f"{part:<40} {count:>6} code, budget {most:>6}" + "  over budget" * (count > most))
    guards = sum(len(guard_lines(text)) for name, text in files.items() if name != "checks.py")
    share = 100 * guards / sum(counts.values())
    over += ["refusals"] * (share > GUARDS)
    print(
        f"{'refusals (if ... raise, not in checks.py)':<40} {share:>5.1f} %, budget {GUARDS:>5.1f} %"
        + "  over budget" * (share > GUARDS)
    )
    lines = sum(count for _, _, count in reading_path((ENGINE.parent / "README.md").read_text()))
    over += ["path"] * (lines > AFTERNOON)
    print(
        f"{'afternoon (the README lists it)':<40} {lines:>6} lines, budget {AFTERNOON:>5}"
        + "  over budget" * (lines > AFTERNOON)
    )
    sys.exit(int(check and bool(over)))


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
