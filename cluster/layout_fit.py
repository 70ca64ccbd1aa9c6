"""Whether the groups of a layout fit some hosts, and how: for `hero plan`, and before a run waits for
resources that no host will ever have. Pure arithmetic.

Ray decides in the end. Groups are put down one after the other, each bundle on the first host that has
room, preferring hosts that the group is on already: what Ray's PACK and STRICT_PACK do on hosts that are
free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cluster.layout import Bundle, Group

SMALLEST = 1e-6
"""Rounding of fractions of a GPU."""


@dataclass(frozen=True)
class Host:
    name: str
    cpus: float
    gpus: int
    aliases: tuple[str, ...] = ()
    """Other names that the layout may give it."""


@dataclass
class HostUse:
    """What is left of a host, and who is on its GPUs."""

    host: Host
    cpus: float
    free: list[float]
    """Of each GPU."""
    who: list[list[str]] = field(default_factory=list)
    """Names of the actors on each GPU, and last of those without one."""


class NoRoomError(Exception):
    """A group that fits nowhere; the message is the arithmetic."""


def fit(groups: Sequence[Group], hosts: Sequence[Host]) -> list[HostUse]:
    """The hosts with the groups on them. Raises NoRoomError."""
    uses = []
    for host in hosts:
        who: list[list[str]] = [[] for _ in range(host.gpus + 1)]
        uses.append(HostUse(host, host.cpus, [1.0] * host.gpus, who))
    for group in largest_first(groups):
        if group.strategy == "STRICT_PACK":
            _put_strict(group, uses, hosts)
        else:
            _put_packed(group, uses, hosts)
    return uses


def largest_first(groups: Iterable[Group]) -> list[Group]:
    """By their largest bundle: small ones may take the gaps that those leave."""
    return sorted(groups, key=lambda group: -max(bundle.gpus for bundle in group.bundles))


def _put_strict(group: Group, uses: list[HostUse], hosts: Sequence[Host]) -> None:
    # One bundle in this project's layouts, since an engine of several hosts is PACK.
    for bundle in group.bundles:
        chosen = next((use for use in uses if _gpus_for(bundle, use) is not None), None)
        if chosen is None:
            raise NoRoomError(no_room(group, hosts, uses))
        _put(bundle, chosen)


def _put_packed(group: Group, uses: list[HostUse], hosts: Sequence[Host]) -> None:
    # Hosts with most room first, so that few are used.
    order = sorted(uses, key=lambda use: -sum(use.free))
    for bundle in group.bundles:
        chosen = next((use for use in order if _gpus_for(bundle, use) is not None), None)
        if chosen is None:
            raise NoRoomError(no_room(group, hosts, uses))
        _put(bundle, chosen)


def _gpus_for(bundle: Bundle, use: HostUse) -> list[int] | None:
    """Numbers of the GPUs that the bundle would take of the host; None if it does not fit."""
    if bundle.host and bundle.host not in (use.host.name, *use.host.aliases):
        return None
    if bundle.cpus > use.cpus + SMALLEST:
        return None
    if bundle.gpus < 1:
        if not bundle.gpus:
            return []
        # The fullest GPU that has room, as Ray does.
        fitting = [gpu for gpu, free in enumerate(use.free) if free + SMALLEST >= bundle.gpus]
        return [min(fitting, key=lambda gpu: use.free[gpu])] if fitting else None
    whole = [gpu for gpu, free in enumerate(use.free) if free > 1 - SMALLEST]
    count = round(bundle.gpus)
    return whole[:count] if len(whole) >= count else None


def _put(bundle: Bundle, use: HostUse) -> None:
    gpus = _gpus_for(bundle, use)
    assert gpus is not None
    use.cpus -= bundle.cpus
    for gpu in gpus:
        use.free[gpu] -= min(1.0, bundle.gpus)
    for number, seat in enumerate(bundle.seats):
        if not gpus:
            use.who[-1].append(seat.name)
        elif bundle.gpus > 1:
            use.who[gpus[number % len(gpus)]].append(seat.name)
        else:
            use.who[gpus[0]].append(seat.name)


def no_room(group: Group, hosts: Sequence[Host], uses: Sequence[HostUse] | None = None) -> str:
    """Why a group does not fit: what it needs and what the hosts have."""
    have = []
    for number, host in enumerate(hosts):
        text = f"{host.name} {_resources({'GPU': host.gpus, 'CPU': host.cpus})}"
        if uses is not None and (uses[number].cpus < host.cpus or sum(uses[number].free) < host.gpus):
            free = {"GPU": sum(uses[number].free), "CPU": uses[number].cpus}
            text += f" ({_resources(free)} left by the rest of the run)"
        have.append(text)
    return f"{group.name} needs {describe(group)}; {'the hosts have: ' if have else ''}{_counted(have)}"


def describe(group: Group) -> str:
    """The bundles in words, for example "4 x {GPU: 1, CPU: 1}"."""
    counts: Counter[tuple[str, str]] = Counter()
    for bundle in group.bundles:
        named = (bundle.host, *bundle.others) if bundle.host else ()
        counts[_resources(bundle.resources), " or ".join(named)] += 1
    parts = []
    for (resources, named_hosts), count in counts.items():
        text = f"{count} x {resources}" if count > 1 else resources
        if named_hosts:
            text += f" on {named_hosts}"
        elif count == 1 or group.strategy == "STRICT_PACK":
            text += " on one host"
        parts.append(text)
    return " and ".join(parts)


def _resources(amounts: dict[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in amounts.items()) + "}"


def _counted(texts: Iterable[str]) -> str:
    """Each once, with how many there are of those whose text is the same."""
    parts = []
    for text, count in Counter(texts).items():
        parts.append(f"{count} x {text}" if count > 1 else text)
    return ", ".join(parts) or "there is no host"
