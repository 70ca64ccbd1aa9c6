"""Host names and addresses: what the endpoint listens on, and the names under which it may be asked.

Without API keys anybody on the machine is served, and so is the browser of that person. A page of
another site could then use the endpoint: by a name of its own that it lets point to 127.0.0.1 (DNS
rebinding), which the Host header shows, or by posting to the address directly, which the Origin
header shows.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

from common.errors import UserError

EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What listens on all addresses of a machine, and the one by which the machine itself reaches it."""


def resolve(host: str) -> list[str]:
    """The addresses of a name or address. Raises UserError if it has none."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"serve.host={host}: no address of this name is known here ({error}); give 127.0.0.1 for this "
            "machine only, 0.0.0.0 for all its addresses, or one of its names or addresses without brackets"
        ) from None
    return [str(address[0]) for *_, address in found]


def check_own(host: str, address: str) -> None:
    """Raises UserError unless this machine can listen on the address of `host`."""
    family = socket.AF_INET
    if ":" in address:
        family = socket.AF_INET6
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except OSError as error:
        raise UserError(
            f"serve.host={host}: {address} is not an address of this machine ({error.strerror}); 0.0.0.0 "
            "listens on all of its own"
        ) from None


def in_use(host: str, port: int) -> bool:
    """Whether something listens there already."""
    with suppress(OSError):
        socket.create_connection((EVERY_ADDRESS.get(host, host), port), timeout=2).close()
        return True
    return False


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def base_url(host: str, port: int) -> str:
    """The URL by which this machine reaches an endpoint that listens on `host`."""
    name = EVERY_ADDRESS.get(host, host)
    if ":" in name:
        name = f"[{name}]"
    return f"http://{name}:{port}"


class AllowedHosts:
    """The names in Host and Origin headers that are answered: those of the loopback, and `names`."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = {"localhost", *(name.lower().strip("[]") for name in names)}

    def reason_to_refuse(self, headers: dict[bytes, bytes]) -> str | None:
        """A sentence for the client; None if the request may pass. A program need not send either
        header, every browser does."""
        host = headers.get(b"host", b"").decode("latin-1")
        if host and not self._knows(f"//{host}"):
            return f"the Host header names {host}, which {_HINT}"
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("//")[2].lower() != host.lower() and not self._is_listed(origin):
            return f"the request comes from a page of {origin}, which {_HINT}"
        return None

    def _knows(self, url: str) -> bool:
        """Whether the URL's host is a loopback address or one of the names."""
        name = _host_name(url)
        try:
            return name in self.names or is_loopback(name)
        except ValueError:
            return False

    def _is_listed(self, origin: str) -> bool:
        # Not the loopback: another program's page on this machine is another site all the same.
        return _host_name(origin) in self.names - {"localhost"}


_HINT = (
    "is not this endpoint: without API keys, only 127.0.0.1, localhost, [::1], serve.host and the names "
    "in serve.allowed_hosts are answered, so that no page of another site can use it"
)


def _host_name(url: str) -> str:
    """The host of a URL without port, brackets and a last dot; empty if it cannot be read."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""
