"""Code lines per file of the engine: what is left without docstrings, comments and blank lines. `make size`."""

import ast
import io
import tokenize
from pathlib import Path

ENGINE = Path(__file__).resolve().parent.parent / "minidistill"
CORE = ("tensor.py", "ops")  # what DESIGN keeps near 500 lines


def code_lines(text):
    """Numbers of the lines that hold code, of one file's text."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines - {len(text.splitlines()) + 1})


def main():
    total, core, everything = 0, 0, 0
    for path in sorted(ENGINE.rglob("*.py")):
        name, text = path.relative_to(ENGINE).as_posix(), path.read_text()
        count, lines = code_lines(text), text.count("\n")
        print(f"{name:<36} {count:>6} code {lines:>6} lines")
        total, everything = total + count, everything + lines
        core += count if name.split("/")[0] in CORE else 0
    print(f"{'core (tensor.py and ops/)':<36} {core:>6} code")
    print(f"{'total':<36} {total:>6} code {everything:>6} lines")


if __name__ == "__main__":
    main()
