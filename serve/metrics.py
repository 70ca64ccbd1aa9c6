"""Prometheus metrics of all replicas in one answer.

Every replica is a process with a registry of its own. `labelled_families` is what one replica
sends; `exposition` puts the families of all replicas together, each family once, and writes the
text format that Prometheus reads.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Families(Collector):
    """Metric families that were collected already, so that a registry can write them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self.families


def labelled_families(registry: CollectorRegistry, replica: str) -> list[Metric]:
    """The families of this process, every sample labelled with the replica. They can be pickled."""
    families = []
    for family in registry.collect():
        # A new family, since a collector may give the same object again at the next call.
        labelled = Metric(family.name, family.documentation, family.type, family.unit)
        for sample in family.samples:
            labelled.samples.append(sample._replace(labels={"replica": replica, **sample.labels}))
        families.append(labelled)
    return families


def exposition(replicas: Iterable[list[Metric]]) -> str:
    """The text format of the families of all replicas. Samples of one family stand together, as the
    format demands."""
    merged: dict[str, Metric] = {}
    for families in replicas:
        for family in families:
            if family.name not in merged:
                merged[family.name] = Metric(family.name, family.documentation, family.type, family.unit)
            merged[family.name].samples += family.samples
    registry = CollectorRegistry()
    registry.register(Families(merged.values()))
    return generate_latest(registry).decode()
