"""Which architectures vLLM can run, read without importing vLLM, which takes seconds."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

REGISTRY = "model_executor/models/registry.py"
TABLES = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
"""Tables of generating models in vLLM's registry: class name -> where vLLM has it."""


@cache
def native_architectures() -> frozenset[str]:
    """Class names of the generating models that vLLM has code of its own for."""
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    tree = ast.parse((Path(package.origin).parent / REGISTRY).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        if ast.unparse(node.targets[0]) in TABLES:
            names.update(ast.literal_eval(node.value))
    return frozenset(names)


def can_run(model_class: type[Any]) -> bool:
    """Whether vLLM can run a class of transformers: by its own code, or through transformers with its
    own attention."""
    if model_class.__name__ in native_architectures():
        return True
    # The condition of vLLM's `_try_resolve_transformers`.
    return bool(model_class.is_backend_compatible() or model_class._can_set_attn_implementation())
