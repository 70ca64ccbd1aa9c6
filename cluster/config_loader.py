"""Reads the configuration of a run: a YAML file, dotted overrides, errors that name the key.

`load_config` is the only way in. An unknown key is refused, and the error names similar keys.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cluster.config import RunConfig
from common.errors import UserError


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Reads a YAML file, applies `dotted.key=value` overrides, validates.

    Values of overrides are YAML; an override that ends in `=` takes the key back to its default.
    Without a file there are the defaults and the overrides. Raises UserError for a missing file,
    invalid YAML, an unknown key or a value that is not allowed.
    """
    # An empty file gives the defaults, and error messages have a path to name.
    path = Path(path or os.devnull)
    values = _read_yaml(path)
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"override {override!r}: expected dotted.key=value, for example ppo.kl_coef=0.1")
        _apply(values, key.split("."), text, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        messages = [_explain(path, details) for details in error.errors()]
        raise UserError("\n".join(messages)) from None


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key can be given once: YAML itself lets the last one win, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            # `<<` merges other mappings, whose keys the mapping's own may override.
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                problem = f"{key.value} is given twice, first in line {lines[key.value]}; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str, has_lines: bool) -> Any:
    """The value of a YAML text. Raises UserError that names `where` it stands, and the line."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark and has_lines:
            where += f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise UserError(f"{where}: not valid YAML ({problem})") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.is_dir() or not path.exists():
        raise UserError(f"{path}: no such config file; the recipes are in configs/")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    values = _parse(text, str(path), has_lines=True) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], keys: list[str], text: str, override: str) -> None:
    for key in keys[:-1]:
        if values.get(key) is None:  # absent, or a section of the file whose lines are comments
            values[key] = {}
        values = values[key]
        if isinstance(values, list):
            raise UserError(f"override {override!r}: {key} is a list; give it whole, as {key}=[…]")
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {key} is a value, not a section")
    if text:
        values[keys[-1]] = _parse(text, f"override {override!r}", has_lines=False)
    else:
        # The override `key=`: the default applies again.
        values.pop(keys[-1], None)


def _explain(path: Path, details: Any) -> str:
    """One line for one error of pydantic, which has its location, kind, message and input."""
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        location = [part for part in details["loc"] if isinstance(part, str)]
        if "." in location[-1]:
            return f"{path}: {key}: keys of a file are nested, as in `ppo: {{kl_coef: 0.1}}`"
        return f"{path}: unknown key {key}; {_suggestion(location[:-1], location[-1])}"
    message = details["msg"].removeprefix("Value error, ")
    if isinstance(details.get("input"), dict):
        return (
            f"{path}: {key or 'the config'}: {message}"  # a whole section as the input would hide the message
        )
    return f"{path}: {key}: {message} (got {details.get('input')!r})"


def _suggestion(section: list[str], unknown: str) -> str:
    """Keys with similar names, those of the same section first; else the keys that the section
    has."""
    keys = list(all_keys(RunConfig))
    siblings = [key for key in keys if key.split(".")[:-1] == section]
    by_name = {key.split(".")[-1]: key for key in keys}
    by_name |= {key.split(".")[-1]: key for key in siblings}
    # A cutoff of 0.5 still proposes kl_coef for kl_cof, and nothing for an arbitrary word.
    similar = difflib.get_close_matches(unknown, by_name, n=3, cutoff=0.5)
    if similar:
        return f"did you mean {' or '.join(by_name[name] for name in similar)}?"
    return f"keys here: {', '.join(siblings or keys)}"


def all_keys(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every dotted key of the configuration with its one-line documentation."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        keys[prefix + name] = " ".join((field.description or "").split())
        for section in _sections(field.annotation):
            keys |= all_keys(section, f"{prefix}{name}.")
    return keys


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field holds: one, or those inside a list or an optional value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    sections: list[type[BaseModel]] = []
    for part in get_args(annotation):
        sections += _sections(part)
    return sections
