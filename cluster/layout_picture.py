"""The layout as a picture in text for `hero plan`: host x GPU x who, and the groups that Ray reserves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rich.table import Table

from cluster.config import RunConfig
from cluster.layout import Group, groups, layout_of, turn_takers
from cluster.layout_checks import is_for_other_hosts, this_host
from cluster.layout_fit import Host, describe, fit
from cluster.stage_registry import fleets_of

GPUS_PER_HOST = 8
"""Assumed of hosts that are not known before the run starts."""


def layout_tables(config: RunConfig) -> list[Table]:
    """The groups, and who is on which GPU. Raises NoRoomError where they do not fit this host."""
    made = groups(config, fleets_of(config.stages))
    if not made:
        return []
    if is_for_other_hosts(config):
        hosts = _assumed_hosts(config, made)
        title = f"Layout, on hosts of {hosts[0].gpus} GPUs" if hosts[0].gpus else "Layout"
    else:
        hosts, title = [this_host(config)], "Layout"
    return [_group_table(config, made), _picture(title, made, hosts)]


def _assumed_hosts(config: RunConfig, made: Sequence[Group]) -> list[Host]:
    """As many as are needed, with the names that the layout gives. Cores are not counted."""
    if config.cluster.device == "cpu":
        return _named(config, [Host("any host", math.inf, 0)])
    largest = max(math.ceil(bundle.gpus) for group in made for bundle in group.bundles)
    gpus = max(GPUS_PER_HOST, largest)
    # In the worst case each bundle needs a host of its own.
    needed = sum(len(group.bundles) for group in made)
    return _named(config, [Host(f"host {number}", math.inf, gpus) for number in range(1, needed + 1)])


def _named(config: RunConfig, hosts: list[Host]) -> list[Host]:
    layout = layout_of(config)
    names = dict.fromkeys([*layout.learners.hosts, *layout.rollout.hosts, *layout.scoring.hosts])
    return [*[replace(hosts[0], name=name) for name in names], *hosts]


def _group_table(config: RunConfig, made: Sequence[Group]) -> Table:
    table = Table(title="Placement groups", title_justify="left")
    for name in ("group", "strategy", "bundles"):
        table.add_column(name)
    rows: dict[tuple[str, str], list[str]] = {}
    for group in made:
        kind = group.name.partition("-")[0]
        rows.setdefault((kind, f"{group.strategy}|{describe(group)}"), []).append(group.name)
    for (_, text), names in rows.items():
        strategy, _, bundles = text.partition("|")
        table.add_row(_range(names), strategy, bundles)
    takers = turn_takers(config)
    if takers:
        table.caption = f"{', '.join(sorted(takers))} take turns on the learners' GPUs"
        table.caption_justify = "left"
    return table


def _picture(title: str, made: Sequence[Group], hosts: Sequence[Host]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("host", "GPU", "who"):
        table.add_column(name)
    for use in fit(made, hosts):
        if not any(use.who):
            continue  # an assumed host that is not needed
        name = use.host.name
        for gpu, who in enumerate(use.who[:-1]):
            table.add_row(name, str(gpu), ", ".join(dict.fromkeys(who)) or "free")
            name = ""
        if use.who[-1]:
            table.add_row(name, "-", ", ".join(use.who[-1]))
        table.add_section()
    return table


def _range(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
