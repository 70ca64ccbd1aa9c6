"""What the benches share: parsing of arguments, tables, and the spread of a repeated measurement."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence


def start_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose `--help` is the docstring of the bench, line by line."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=layout)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Median and range of a repeated measurement, each in the format `form`."""
    lowest, highest = min(values), max(values)
    return f"{statistics.median(values):{form}} ({lowest:{form}} to {highest:{form}})"


def mean_interval(values: Sequence[float], form: str) -> str:
    """Mean and half the width of its 95% interval (normal), each in the format `form`."""
    margin = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):{form}} ± {margin:{form}}"


def print_header(columns: Sequence[str]) -> None:
    """Starts a Markdown table."""
    print_row(columns)
    print("|---" * len(columns) + "|", flush=True)


def print_row(cells: Iterable[object]) -> None:
    """One row of a Markdown table."""
    # Flushed, because minutes may pass until the next row.
    print("|", " | ".join(map(str, cells)), "|", flush=True)
