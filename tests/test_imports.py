"""Imports point one way, between packages and inside them, and no modules import each other in a circle."""

import ast
from functools import cache
from pathlib import Path

import pytest

PRODUCT = ("common", "label", "learners", "actors", "serve", "cluster")

FORBIDDEN = {
    "common": ("label", "learners", "actors", "serve", "cluster"),
    "label": ("learners", "actors", "serve", "cluster", "ray", "torch"),
    "label.store": ("label.api", "label.cli"),
    "label.statistics": ("common",),
    "learners": ("label", "actors", "serve", "cluster"),
    "learners.data": ("learners.rl", "learners.supervised"),
    "learners.rl": ("learners.supervised",),
    "learners.supervised": ("learners.rl",),
    "actors": ("label", "serve", "cluster"),
    "serve": ("label", "cluster"),
    "cluster.run": ("cluster.fleets", "cluster.rl", "cluster.stages", "cluster.pipeline", "ray", "torch"),
    "cluster.plan": ("cluster.fleets", "cluster.rl", "cluster.stages", "ray", "torch"),
    "cluster.fleets": ("cluster.rl", "cluster.stages", "cluster.pipeline"),
    "cluster.rl": ("cluster.stages", "cluster.pipeline"),
    "cluster.stages": ("cluster.pipeline", "cluster.cli"),
    "cluster.rounds": (
        *("cluster.fleets", "cluster.rl", "cluster.stages", "cluster.pipeline", "cluster.cli"),
        *("ray", "torch", "vllm"),
    ),
    "cluster.quickstart": ("cluster.fleets", "cluster.rl", "cluster.run", "cluster.stages"),
    "cluster.recipes": ("cluster.fleets", "cluster.rl", "cluster.run", "cluster.stages"),
}
"""Package (or module) -> what nothing in it imports, anywhere in a file."""


@cache
def modules():
    """Every module of the product: dotted name -> path."""
    names = {}
    for package in PRODUCT:
        for path in sorted(Path(package).rglob("*.py")):
            parts = path.with_suffix("").parts
            names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imported(nodes):
    """Dotted names that import statements among `nodes` name; of `from a import b` both a and a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from [f"{node.module}.{alias.name}" for alias in node.names]


def at_import_time(node):
    """Statements that run when the module is imported: not those in functions, nor under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_function and not for_types:
            yield child
            yield from at_import_time(child)


def within(name, package):
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package):
    own = {name: path for name, path in modules().items() if within(name, package)}
    assert own, f"{package}: no such package"
    for name, path in own.items():
        for target in imported(ast.walk(ast.parse(path.read_text()))):
            wrong = [other for other in FORBIDDEN[package] if within(target, other)]
            assert not wrong, f"{name} imports {target}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {}
    for name, path in modules().items():
        targets = set(imported(at_import_time(ast.parse(path.read_text()))))
        graph[name] = sorted((targets & modules().keys()) - {name})
    finished, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in finished:
            return
        path.append(name)
        for target in graph[name]:
            visit(target)
        path.pop()
        finished.add(name)

    for name in graph:
        visit(name)
    assert len(finished) > 60
