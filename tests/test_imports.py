"""Imports go one way: cluster may use everything, serve and actors what is below them, learners nothing of ours."""

import ast
from pathlib import Path

import pytest

BELOW = {
    "common": set(),
    "learners": {"common"},
    "actors": {"learners", "common"},
    "serve": {"actors", "learners", "common"},
    "cluster": {"serve", "actors", "learners", "common"},
}


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_one_way(package):
    for path in Path(package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong = {n.split(".")[0] for n in names} & (BELOW.keys() - BELOW[package] - {package})
            assert not wrong, f"{path} imports {wrong}"
