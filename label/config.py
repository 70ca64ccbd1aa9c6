"""The `label` section of the configuration: the workplace of people who label."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config import LocalPath, Section
from label.quality.config import PauseConfig, ScreeningThresholds


class ScreeningConfig(Section):
    required: bool = True
    """Whether people answer the questionnaire before they are admitted. An owner admits in either case,
    unless `auto_admit`."""
    auto_admit: bool = False
    """Admit people as they join. For simulated labelers and for teams that were chosen elsewhere."""
    questionnaire: LocalPath | None = None
    """YAML file of questions (docs/labeling.md). Empty: the one that comes with the program."""
    thresholds: ScreeningThresholds = ScreeningThresholds()
    """Scores at which admission is proposed."""


class LabelConfig(Section):
    host: str = "127.0.0.1"
    """Address to listen on. Put a reverse proxy with TLS in front for people on other machines."""
    port: int = Field(8100, ge=1, le=65535)
    """Port to listen on."""
    database: str | None = None
    """postgresql+psycopg://… for several server processes. Empty: the SQLite file RUN/label/label.db."""
    public_url: str | None = None
    """The https:// address by which people reach the workplace, for invite links and for the check of where
    a request comes from. Empty: http://HOST:PORT."""
    lease_min: float = Field(20, gt=0)
    """Minutes that an item is kept for the person who opened it. A page at work renews it."""
    overlap: int = Field(1, ge=1)
    """Labels of different people for each item, where `hero label add` does not say otherwise."""
    quota_per_person: int | None = Field(None, ge=1)
    """Most labels that one person gives in all. Empty: no limit."""
    daily_max: int | None = Field(None, ge=1)
    """Most labels that one person gives within 24 hours. Empty: no limit."""
    gold_share: float = Field(0.05, ge=0, lt=1)
    """Share of a person's items that are hidden gold items: items with a known answer."""
    calibration_share: float = Field(0.10, ge=0, lt=1)
    """Share of a person's items that are shared calibration items, which everybody labels."""
    repeat_share: float = Field(0.02, ge=0, lt=1)
    """Share of a person's items that he or she labeled before, to measure self-agreement."""
    requests_per_10_s: int = Field(30, ge=1)
    """Requests of one person within 10 seconds; further ones are answered 429."""
    consent: LocalPath | None = None
    """Markdown file that people consent to when they join. Empty: the text that comes with the program."""
    screening: ScreeningConfig = ScreeningConfig()
    """Admission of people."""
    pause: PauseConfig = PauseConfig()
    """When the quality of a person's labels is a reason to pause."""
    log_level: Literal["warning", "info"] = "warning"
    """What the server prints: warnings only, or a line for each request."""
