"""Prometheus metrics of several replicas in one text: samples with their replica, families once."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import exposition, labelled_families


def make_registry(scale: float) -> CollectorRegistry:
    """One metric of each kind, with and without labels, and with a value that a label has to escape."""
    registry = CollectorRegistry()
    Counter("requests", "All requests.", registry=registry).inc(3 * scale)
    finished = Counter("vllm:finished", "By reason.", ["model", "zone"], registry=registry)
    finished.labels('he"ro, {x}', "b c").inc(scale)
    Gauge("kv_cache_bytes", "Cache.\nIn bytes.", registry=registry).set(1e9 * scale)
    latency = Histogram("latency", "Seconds.", ["route"], buckets=(0.1, 1), registry=registry)
    latency.labels("/v1/models").observe(0.5 * scale)
    return registry


def samples(text: str) -> dict[tuple, float]:
    rows = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (family.name, family.type, sample.name, frozenset(sample.labels.items()))
            assert key not in rows
            rows[key] = sample.value
    return rows


@pytest.fixture
def registries():
    return {"r1": make_registry(1.0), "r2": make_registry(2.0)}


def test_every_sample_of_every_replica_has_its_label(registries):
    expected = {}
    for replica, registry in registries.items():
        for (family, kind, name, labels), value in samples(generate_latest(registry).decode()).items():
            expected[family, kind, name, labels | {("replica", replica)}] = value
    text = exposition([labelled_families(registry, replica) for replica, registry in registries.items()])
    assert samples(text) == expected


def test_every_family_is_described_once_in_the_order_of_a_replica(registries):
    text = exposition([labelled_families(registry, replica) for replica, registry in registries.items()])
    comments = [line for line in text.splitlines() if line.startswith("#")]
    alone = generate_latest(registries["r1"]).decode()
    assert comments == [line for line in alone.splitlines() if line.startswith("#")]


def test_the_registry_is_not_changed_by_the_label(registries):
    labelled_families(registries["r1"], "r1")
    assert b"replica" not in generate_latest(registries["r1"])
