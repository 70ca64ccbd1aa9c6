"""Figures of the benches: equal numbers give equal SVG files."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "zero2hero"


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
