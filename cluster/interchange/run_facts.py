"""What a run directory says about a model that came out of it, for its card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.interchange.importing import ORIGIN
from cluster.stage_registry import STAGES, stage_spec
from common.files import read_json, read_jsonl
from common.run_paths import RunPaths

Figures = dict[str, float]


@dataclass
class RunFacts:
    """Facts about one exported model. Empty for a folder that is no run's."""

    name: str
    version: str
    base: dict[str, Any] = field(default_factory=dict)
    """Name or path of the model that the run started from, and what its import wrote down."""
    config: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """done.json of every finished stage up to the one that made the model, and of the evaluation."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    lineage: list[dict[str, Any]] = field(default_factory=list)


def run_facts(root: Path, version: str) -> RunFacts:
    """The facts of a version, or of the model of a stage, in a run directory or beside it."""
    paths = RunPaths(root)
    if not paths.config.exists():
        return RunFacts(root.name, version, base={"origin": read_json(root / ORIGIN) or {}})
    config = yaml.safe_load(paths.config.read_text(encoding="utf-8"))
    facts = RunFacts(config["name"], version, base=_base(config, paths), config=config)
    last = version.rpartition("-")[0] or version
    if last not in STAGES:
        last = STAGES[-1]
    for stage in STAGES:
        made_it = STAGES.index(stage) <= STAGES.index(last) or stage == "evaluate"
        done = read_json(paths.stage(stage).done)
        if made_it and done:
            facts.stages[stage] = done
    facts.evaluation = read_json(paths.evaluation) or {}
    for row in read_jsonl(paths.lineage):
        if row["stage"] in facts.stages:
            for key in ("consumed", "produced"):
                row[key] = [_shown(path, root) for path in row[key]]
            # A stage that was done again has a row for each time.
            facts.lineage = [other for other in facts.lineage if other["stage"] != row["stage"]] + [row]
    return facts


def data_rows(facts: RunFacts) -> list[tuple[str, str, str, str]]:
    """(kind, file, form, rows) of all data of the stages."""
    rows = []
    counts = _counts(facts)
    reads = {"rankings"}.union(*(stage_spec(stage).reads for stage in facts.stages))
    for kind, sources in (facts.config.get("data") or {}).items():
        if kind not in reads or not isinstance(sources, list):
            continue
        for source in sources:
            split = "" if source.get("split") in (None, "train") else f" [{source['split']}]"
            name = "/".join(Path(source["path"]).parts[-2:])
            rows.append((kind, name + split, source.get("convert") or "", counts.get(kind, "")))
    return rows


def _counts(facts: RunFacts) -> dict[str, str]:
    """How many rows of each kind were read and kept; those of all its sources together."""
    counts: dict[str, str] = {}
    for done in facts.stages.values():
        by_kind: dict[str, dict[str, int]] = {}
        for key, value in done.get("results", {}).items():
            if key.startswith("data/"):
                _, kind, reason = key.split("/")
                by_kind.setdefault(kind, {})[reason] = value
        for kind, reasons in by_kind.items():
            parts = [f"{reason.replace('_', ' ')} {count:,}" for reason, count in reasons.items() if count]
            counts[kind] = ", ".join(parts)
    return counts


def figures(done: dict[str, Any]) -> Figures:
    """The numbers that a stage ended with, without counts of rows."""
    found = {}
    for name, value in done.get("results", {}).items():
        if isinstance(value, (int, float)) and not name.startswith("data/"):
            found[name] = float(value)
    return found


def _base(config: dict[str, Any], paths: RunPaths) -> dict[str, Any]:
    given = (config.get("model") or {}).get("path")
    if not given or paths.stage("pretrain").done.exists():
        return {}
    folder = Path(given)
    if not folder.is_absolute():
        folder = paths.started_in() / folder
    return {"name": given, "origin": read_json(folder / ORIGIN) or {}}


def _shown(path: str, root: Path) -> str:
    """A path of the run's from its directory on, any other by its last two parts."""
    try:
        return str(Path(path).relative_to(root.absolute()))
    except ValueError:
        return "/".join(Path(path).parts[-2:])
