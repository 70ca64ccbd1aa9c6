"""A workplace: its settings, its database and its files, in RUN/label."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from common.errors import UserError
from common.run_paths import RunPaths
from label.config import LabelConfig
from label.questionnaire import Questionnaire
from label.store.database import Database
from label.store.guidelines import TEMPLATES, publish_templates


class Workplace:
    """Opened by the server and by every `hero label` command."""

    def __init__(self, run: Path, settings: LabelConfig) -> None:
        """Raises UserError for a database that cannot be used."""
        self.paths = RunPaths(run)
        self.settings = settings
        if settings.database:
            self.database = Database(settings.database)
        else:
            self.database = Database.of_file(self.paths.label_database)
        self.questionnaire = Questionnaire.of_file(
            Path(settings.screening.questionnaire or TEMPLATES / "questionnaire.yaml")
        )
        self.figures: tuple[Any, dict[str, Any]] | None = None
        """Those of the page of quality, with the state of the labels that they were made of."""
        with self.database.write() as connection:
            publish_templates(connection)

    @classmethod
    def open(cls, run: Path, overrides: Sequence[str] = ()) -> Workplace:
        return cls(run, read_settings(run, overrides))

    @property
    def exports(self) -> Path:
        return self.paths.label_exports

    @property
    def url(self) -> str:
        return (self.settings.public_url or f"http://{self.settings.host}:{self.settings.port}").rstrip("/")

    def consent(self) -> tuple[str, str]:
        """Version and text of what people consent to. The version is of the text, so that a change of the
        file is a new one."""
        file = Path(self.settings.consent) if self.settings.consent else TEMPLATES / "consent.md"
        if not file.is_file():
            raise UserError(f"label.consent={file}: no such file")
        text = file.read_text(encoding="utf-8")
        return hashlib.sha256(text.encode()).hexdigest()[:12], text


def read_settings(run: Path, overrides: Sequence[str] = ()) -> LabelConfig:
    """Section `label` of RUN/config.yaml, over it RUN/label/settings.yaml, over it key=value overrides.
    Raises UserError that names file or key."""
    values: dict[str, Any] = {}
    paths = RunPaths(run)
    section = _read_yaml(paths.config).get("label")
    values.update(section or {})
    values.update(_read_yaml(paths.label_settings))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r}: expected key=value, for example lease_min=30")
        _set(values, key.removeprefix("label.").split("."), yaml.safe_load(text))
    try:
        return LabelConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"label.{key}: {problem['msg']}") from None


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    values[keys[-1]] = value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values
