"""How dense the code is: figures of length and density, beside the targets of the house.

    python bench/style.py [PATH ...] [--all] [--per-file] [--check]

Without a PATH it measures the product packages; `--all` adds tests and bench. `--per-file` prints
one row for each file. `--check` exits with 1 if a target is missed. Definitions:
- a line is a line that is not blank, docstrings and comments included; rates are per 100 of them;
- a comprehension is also a generator expression; a conditional expression is `a if c else b`;
- a comment is a line with nothing but a comment; comments after code do not count;
- a function runs from `def` to its last line; nested is a `def` inside a function, not a lambda;
- the densest statements have the most expressions of the kinds in DENSE.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

PRODUCT = tuple(map(Path, ("common", "actors", "label", "learners", "cluster", "serve")))
LONG_LINE, LONG_FUNCTION = 100, 60
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DENSE = (*COMPREHENSIONS, ast.IfExp, ast.BoolOp, ast.Compare, ast.Call, ast.Subscript)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Style:
    """What is counted in one file, or summed over several."""

    files: int = 0
    raw_lines: int = 0
    lines: int = 0
    long: int = 0
    comprehensions: int = 0
    conditionals: int = 0
    comments: int = 0
    functions: list[tuple[int, str]] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    statements: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Style) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def rate(self, count: int) -> float:
        return 100 * count / max(1, self.lines)

    def long_functions(self) -> list[tuple[int, str]]:
        return [entry for entry in self.functions if entry[0] > LONG_FUNCTION]

    def figures(self) -> list[tuple[str, float, str, bool]]:
        """Name, value, target and whether the target is met, of every figure that has one."""
        at_most = [
            (f"lines over {LONG_LINE} characters, %", self.rate(self.long), 4),
            ("comprehensions per 100 lines", self.rate(self.comprehensions), 3.5),
            ("conditional expressions per 100 lines", self.rate(self.conditionals), 1.5),
            (f"functions over {LONG_FUNCTION} lines", len(self.long_functions()), 0),
            ("nested functions", len(self.nested), 8),
        ]
        # Rounded as printed, or 1.504 would read "1.5, target <= 1.5, MISSED".
        comments = round(self.rate(self.comments), 1)
        figures = [("comment lines per 100 lines", comments, ">= 3", comments >= 3)]
        for name, value, most in at_most:
            figures.append((name, round(value, 1), f"<= {most}", round(value, 1) <= most))
        return figures


def measure(path: Path) -> Style:
    source = path.read_text(encoding="utf-8")
    style = Style(files=1)
    for line in source.splitlines():
        style.raw_lines += 1
        style.lines += bool(line.strip())
        style.long += len(line) > LONG_LINE
    # Only the tokenizer tells a comment from a line of a string that starts with `#`.
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            style.comments += 1
    count(ast.parse(source), path, False, style)
    return style


def count(node: ast.AST, path: Path, inside_function: bool, style: Style) -> None:
    """Adds what is below `node`; `ast.walk` does not say whether a function encloses a node."""
    for child in ast.iter_child_nodes(node):
        style.comprehensions += isinstance(child, COMPREHENSIONS)
        style.conditionals += isinstance(child, ast.IfExp)
        if isinstance(child, FUNCTIONS):
            where = f"{path}:{child.lineno} {child.name}"
            style.functions.append(((child.end_lineno or 0) - child.lineno + 1, where))
            if inside_function:
                style.nested.append(where)
        # Statements with a body are left out: what is in their bodies is counted statement by statement.
        elif isinstance(child, ast.stmt) and not hasattr(child, "body"):
            density = sum(isinstance(part, DENSE) for part in ast.walk(child))
            style.statements.append((density, f"{path}:{child.lineno}"))
        count(child, path, inside_function or isinstance(child, FUNCTIONS), style)


def print_summary(style: Style) -> None:
    print(f"{style.files} files, {style.raw_lines:,} lines, {style.lines:,} of them not blank")
    for name, value, target, met in style.figures():
        print(f"{name:40} {value:6.1f}   target {target}" + "   MISSED" * (not met))
    print("longest function:", *max(style.functions, default=(0, "none")))
    print("over the limit:", *style.long_functions(), sep="\n  ")
    print("nested functions:", *style.nested, sep="\n  ")
    print("densest statements:", *sorted(style.statements, reverse=True)[:5], sep="\n  ")


def print_files(styles: dict[Path, Style]) -> None:
    print("lines comment   long%   compr  condit  over60  nested  file   (* target missed)")
    for path, style in sorted(styles.items(), key=lambda item: -item[1].rate(item[1].long)):
        print(f"{style.lines:5}", end="")
        for _, value, _, met in style.figures():
            print(f" {value:6.1f}" + "* "[met], end="")
        print(f"  {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--per-file", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    # Not every package exists in every tree that is compared.
    paths = options.paths or [path for path in PRODUCT if path.exists()]
    if options.all:
        paths += [Path("tests"), Path("bench")]
    total, styles = Style(), {}
    for path in paths:
        # Below a file there is nothing to find, so it stands for itself.
        for file in sorted(path.rglob("*.py")) or [path]:
            styles[file] = measure(file)
            total.add(styles[file])
    if options.per_file:
        print_files(styles)
    print_summary(total)
    all_met = all(met for _, _, _, met in total.figures())
    return int(options.check and not all_met)


if __name__ == "__main__":
    sys.exit(main())
