"""The hosts of the Ray cluster, as a layout names them."""

from __future__ import annotations

from collections.abc import Collection

import ray
from ray._private.state import available_resources_per_node

from cluster.layout import Bundle
from cluster.layout_fit import Host


def choose_host(bundle: Bundle, known: Collection[str]) -> str | None:
    """The first host that the layout gives a bundle and that is in the cluster."""
    named = (bundle.host, *bundle.others) if bundle.host else ()
    return next((host for host in named if host in known), None)


def hosts() -> list[Host]:
    """The live hosts of the cluster."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            names = (node["NodeManagerHostname"], node["NodeName"])
            gpus = int(resources.get("GPU", 0))
            found.append(Host(node["NodeManagerAddress"], resources.get("CPU", 0), gpus, names))
    return found


def node_addresses() -> dict[str, str]:
    """Address of each live host, by every name that the layout may give it."""
    return {name: host.name for host in hosts() for name in (host.name, *host.aliases) if name}


def free_resources() -> str:
    """What each host has left."""
    parts = []
    for resources in available_resources_per_node().values():
        parts.append("{" + f"GPU: {resources.get('GPU', 0):g}, CPU: {resources.get('CPU', 0):g}" + "}")
    return ", ".join(parts)
