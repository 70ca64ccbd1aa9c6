"""By which address and interface processes of a cluster reach this host, and which requests stay on it.

The address is the one that the cluster itself uses for this host: `cluster.fleets.actor_host` announces
it in every actor. A host's own name is no substitute, since Debian resolves it to 127.0.1.1, where
only this host answers.

Requests to this machine go past the proxy that the environment names (HTTP_PROXY): the proxy is
another machine, which would answer in place of an endpoint that it cannot reach.
"""

from __future__ import annotations

import ipaddress
import os
import random
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psutil

LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
HOST_ADDRESS = "HERO_HOST_ADDRESS"
"""Environment variable with the address that `announce_host` was given, also for child processes."""
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST_PORT = 20000
"""Above the ports that the workers of a Ray cluster listen at."""
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def announce_host(address: str) -> None:
    """Makes `address` the one by which this host is reached, for this process and its children.

    Gloo and NCCL choose an interface of their own otherwise, for example that of a container bridge,
    through which other hosts answer nothing. Variables that the user has set stay.
    """
    os.environ[HOST_ADDRESS] = address
    os.environ.setdefault("VLLM_HOST_IP", address)
    interface = interface_of(address)
    if interface is not None:
        for name in INTERFACE_VARIABLES:
            os.environ.setdefault(name, interface)


def host_address() -> str:
    """The address that was announced; without one, that of the interface that leads to other networks,
    or 127.0.0.1 where none does."""
    announced = os.environ.get(HOST_ADDRESS)
    if announced:
        return announced
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: it chooses the route, and with it the interface.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def free_ports(count: int) -> list[int]:
    """Different TCP ports for servers that start soon and that are given their port.

    A port that the kernel chooses (port 0) is one that it also gives to outgoing connections: until the
    server listens there it can be taken, and on a busy machine is. These lie below that range where it
    leaves room.
    """
    try:
        first_ephemeral = int(EPHEMERAL_PORTS.read_text().split()[0])
    except OSError:  # not Linux
        first_ephemeral = 49152  # where the range that IANA set aside begins
    candidates = range(FIRST_PORT, first_ephemeral)
    with ExitStack() as stack:
        ports: list[int] = []
        for candidate in [*random.sample(candidates, min(100, len(candidates))), *[0] * count]:
            if len(ports) == count:
                break
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind(("", candidate))
            except OSError:  # in use
                continue
            ports.append(listener.getsockname()[1])
        return ports


def interface_of(address: str) -> str | None:
    """Name of the network interface that has this IPv4 or IPv6 address; None if this host has none."""
    searched = ipaddress.ip_address(address)
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            own = ipaddress.ip_address(entry.address.partition("%")[0])
            # Every address of 127.0.0.0/8 is the loopback's, though it lists one.
            if own == searched or (own.is_loopback and searched.is_loopback):
                return name
    return None


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address. Raises ValueError for what is none."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def is_loopback_url(url: str) -> bool:
    """Whether a request to this URL stays on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        # A server listens at 0.0.0.0 and ::; a request to there reaches this machine.
        return host in ("localhost", "0.0.0.0", "::") or is_loopback(host)
    except ValueError:  # another host name
        return False


def bypass_proxies_for_loopback() -> None:
    """For the libraries that read the environment themselves: the clients of Ray's dashboard and of
    OpenAI, and the processes that this one starts."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host.strip() for host in os.environ.get(name, "").split(",")]
        os.environ[name] = ",".join(dict.fromkeys([host for host in hosts if host] + list(LOOPBACK)))
