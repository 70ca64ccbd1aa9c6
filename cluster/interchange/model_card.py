"""The card of an exported model (README.md, as model hubs show it), from the facts of its run alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from cluster.interchange.run_facts import RunFacts, data_rows, figures

SETTINGS = (
    ("model", ("context", "lora")),
    ("sft", ("epochs", "batch_size")),
    ("reward_model", ("epochs", "batch_size", "path")),
    ("rewards", ("sources",)),
    (
        "ppo",
        ("advantage", "iterations", "prompts", "responses", "epochs", "kl_coef", "kl_target", "ptx_coef"),
    ),
    ("ppo", ("temperature", "max_response_tokens")),
)
"""Keys of the config that say most about the result; all of them are in the run's config.yaml."""


def model_card(facts: RunFacts, architecture: str, parameters: int, file: str | None = None) -> str:
    """The text of README.md. `file` is the GGUF file that is beside it, where the model is not there as a
    Hugging Face folder."""
    parts = [_header(facts), f"# {facts.name}, {facts.version}", _summary(facts, architecture, parameters)]
    parts += [
        _usage(file),
        _data(facts),
        _stages(facts),
        _evaluation(facts),
        _settings(facts),
        _lineage(facts),
    ]
    parts.append("What no table above has was not measured.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(facts: RunFacts) -> str:
    origin = facts.base.get("origin", {})
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if origin.get("license"):
        fields["license"] = origin["license"]
    if facts.base.get("name") or origin.get("name"):
        fields["base_model"] = origin.get("name") or facts.base["name"]
    fields["tags"] = ["zero2hero", *facts.stages]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _summary(facts: RunFacts, architecture: str, parameters: int) -> str:
    text = f"{architecture}, {parameters / 1e6:.1f} million parameters."
    origin = facts.base.get("origin", {})
    if facts.stages:
        trained = ", ".join(stage for stage in facts.stages if stage != "evaluate")
        text += f" Trained by Zero2Hero in the stages {trained}, with seed {facts.config['seed']}."
    if origin:
        text += (
            f" It started from {origin['source']} ({origin['stored_as']}; SHA-256 "
            f"{origin['sha256'] or 'not recorded'}; licence {origin['license'] or 'not stated in the file'})."
        )
    elif facts.base.get("name"):
        text += f" It started from {facts.base['name']}."
    elif facts.stages:
        text += " It started from random weights."
    return text


def _usage(file: str | None) -> str:
    if file:
        return f"```sh\nllama-cli -m {file}    # llama.cpp; the chat template is in the file\n```"
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'chat = pipeline("text-generation", "THIS FOLDER")\n'
        'print(chat([{"role": "user", "content": "Hello"}], max_new_tokens=64)[0]["generated_text"][-1])\n```'
    )


def _data(facts: RunFacts) -> str:
    rows = data_rows(facts)
    if not rows:
        return ""
    return "## Data\n\n" + _table(("kind", "file", "form", "rows of the kind"), rows)


def _stages(facts: RunFacts) -> str:
    rows = []
    for stage, done in facts.stages.items():
        measured = ", ".join(f"{name} {_number(value)}" for name, value in figures(done).items())
        rows.append((stage, f"{done['seconds'] / 60:.1f}", measured))
    return "## Stages\n\n" + _table(("stage", "minutes", "figures at its end"), rows) if rows else ""


def _evaluation(facts: RunFacts) -> str:
    by_model: dict[str, dict[str, dict[str, float]]] = facts.evaluation.get("stages", {})
    names: list[str] = []
    for decodings in by_model.values():
        for rates in decodings.values():
            names += [name for name in rates if name not in names]
    if not names:
        return ""
    rows = []
    for model, decodings in by_model.items():
        for decoding, rates in decodings.items():
            rows.append((model, decoding, *(_number(rates.get(name)) for name in names)))
    text = "## Evaluation on held-out prompts\n\n" + _table(("model", "decoding", *names), rows)
    win = facts.evaluation.get("win_rate")
    if win:
        text += (
            f"\n\n{win['challenger']} is preferred to {win['baseline']} in {win['rate']:.1%} of "
            f"{win['count']} comparisons (95% interval {win['low']:.1%} to {win['high']:.1%}, ties half) by "
            f"{win['judge']}."
        )
    return text


def _settings(facts: RunFacts) -> str:
    lines = []
    for section, keys in SETTINGS:
        is_used = section in ("model", "rewards") or section.removesuffix("_model") in facts.stages
        values = facts.config.get(section) or {}
        if is_used:
            known = {key: values[key] for key in keys if values.get(key) is not None}
            lines += [f"{section}.{key}: {value}" for key, value in known.items()]
    return "## Settings\n\n```yaml\n" + "\n".join(lines) + "\n```" if lines else ""


def _lineage(facts: RunFacts) -> str:
    rows = []
    for row in facts.lineage:
        rows.append((row["stage"], ", ".join(row["consumed"]), ", ".join(row["produced"])))
    return "## Lineage\n\n" + _table(("stage", "made from", "made"), rows) if rows else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.3g}"
