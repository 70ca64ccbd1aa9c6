"""Names and addresses that an endpoint listens on, and what is printed for them."""

import socket
from contextlib import closing, suppress

import pytest

from common.errors import UserError
from common.network import is_loopback
from serve.addresses import base_url, in_use, listening_address
from serve.config import ServeConfig
from serve.launch import application


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("box.local", "http://box.local:8000"),
    ],
)
def test_the_printed_url_can_be_opened(host, url):
    assert base_url(host, 8000) == url


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("192.168.1.7", False),
        ("fe80::1%eth0", False),
    ],
)
def test_loopback_addresses_in_every_form(address, loopback):
    assert is_loopback(address) is loopback


def test_names_are_resolved_or_refused_in_a_sentence():
    assert listening_address("localhost") == listening_address("127.0.0.1") == "127.0.0.1"
    assert listening_address("0.0.0.0") == "0.0.0.0"
    for host in ("no-such-machine.invalid", "[::1]", "1.2.3.4.5", "x" * 70, ""):
        with pytest.raises(UserError, match=r"serve.host=.*: no address of this name is known here"):
            listening_address(host)
    for host in ("::1", "::", "192.0.2.1", "127.0.1.1"):
        with pytest.raises(
            UserError, match=rf"serve.host={host}: .* cannot listen on {host} alone; give 127"
        ):
            listening_address(host)


def test_the_name_of_this_machine_is_served_or_refused_in_a_sentence(files):
    config = ServeConfig(host=socket.gethostname())
    with suppress(UserError):
        application(files.root, config)


def test_a_port_in_use_is_seen_on_every_kind_of_address():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        assert in_use("127.0.0.1", port)
        assert in_use("localhost", port)
        assert in_use("0.0.0.0", port)
    assert not in_use("127.0.0.1", port)
