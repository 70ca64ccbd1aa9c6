"""Requests to this machine go past the proxy that the environment names (HTTP_PROXY): the proxy is
another machine, which would answer in place of an endpoint that it cannot reach."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


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
