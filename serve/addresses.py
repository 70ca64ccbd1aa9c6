"""Host names and addresses: what the endpoint listens on, and the names under which it may be asked.

Without API keys anybody on the machine is served, and so is the browser of that person. A page of
another site could then use the endpoint: by a name of its own that it lets point to 127.0.0.1 (DNS
rebinding), which the Host header shows, or by posting to the address directly, which the Origin
header shows.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

from common.errors import UserError
from common.network import is_loopback

LOOPBACK, EVERY_ADDRESS = "127.0.0.1", "0.0.0.0"


def listening_address(host: str) -> str:
    """What the endpoint listens on for a name or address: 127.0.0.1 or 0.0.0.0. Raises UserError for
    any other, since HAProxy asks the replicas, which listen on the same address, by 127.0.0.1."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"serve.host={host}: no address of this name is known here ({error}); {_CHOICE}"
        ) from None
    addresses = [str(address[0]) for *_, address in found]
    for address in (LOOPBACK, EVERY_ADDRESS):
        if address in addresses:
            return address
    raise UserError(f"serve.host={host}: Ray Serve's proxy cannot listen on {addresses[0]} alone; {_CHOICE}")


_CHOICE = "give 127.0.0.1 for this machine only, or 0.0.0.0 for all its IPv4 addresses (with API keys)"


def in_use(host: str, port: int) -> bool:
    """Whether something listens there already."""
    with suppress(OSError):
        socket.create_connection((host, port), timeout=2).close()
        return True
    return False


def base_url(host: str, port: int) -> str:
    """The URL by which this machine reaches an endpoint that listens on `host`."""
    name = LOOPBACK if host == EVERY_ADDRESS else host
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
