"""The address of this host; requests to it do not go to the proxy of the environment."""

import os
import socket
import urllib.request

import httpx
import pytest

from common.network import (
    EPHEMERAL_PORTS,
    FIRST_PORT,
    HOST_ADDRESS,
    INTERFACE_VARIABLES,
    announce_host,
    bypass_proxies_for_loopback,
    free_ports,
    host_address,
    interface_of,
    is_loopback_url,
)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.8.0.1", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
        ("http://0.0.0.0:8000", True),
        ("http://10.0.0.3:8000", False),
        ("https://rewards.example.org/score", False),
        ("http://localhost.example.org", False),
    ],
)
def test_urls_of_this_machine(url, loopback):
    assert is_loopback_url(url) is loopback


def test_libraries_that_read_the_environment_go_past_the_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "internal.example.org")
    assert not urllib.request.proxy_bypass("127.0.0.1")
    bypass_proxies_for_loopback()
    bypass_proxies_for_loopback()
    assert os.environ["NO_PROXY"] == "internal.example.org,localhost,127.0.0.1,::1,0.0.0.0"
    with httpx.Client() as client:
        for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0"):
            assert urllib.request.proxy_bypass(host.strip("[]"))
            # The transport without a proxy; there is no public way to ask.
            assert client._transport_for_url(httpx.URL(f"http://{host}:8000/")) is client._transport
        assert client._transport_for_url(httpx.URL("http://example.org/")) is not client._transport


@pytest.fixture
def no_announcement(monkeypatch):
    # Set first, so that the fixture restores what the test changes.
    for name in (HOST_ADDRESS, "VLLM_HOST_IP", *INTERFACE_VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_announced_address_is_the_hosts_and_names_its_interface(no_announcement, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    announce_host("127.0.0.7")
    assert host_address() == os.environ["VLLM_HOST_IP"] == "127.0.0.7"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"  # the user's


def test_without_an_announcement_the_address_is_that_of_an_interface(no_announcement):
    # The name of a Debian host resolves to 127.0.1.1, which no other host reaches.
    assert host_address() != "127.0.1.1"
    assert interface_of(host_address())
    with socket.socket() as server:
        server.bind((host_address(), 0))


def test_an_address_of_another_host_has_no_interface_here():
    assert interface_of("192.0.2.7") is None


def test_free_ports_are_none_that_outgoing_connections_get():
    ports = free_ports(40)
    assert len(set(ports)) == 40
    first, last = map(int, EPHEMERAL_PORTS.read_text().split())
    assert all(port >= FIRST_PORT and not first <= port <= last for port in ports)


def test_a_port_in_use_is_not_free(monkeypatch):
    with socket.socket() as server:
        server.bind(("", free_ports(1)[0]))
        server.listen()
        used = server.getsockname()[1]
        (other,) = free_ports(1)
        monkeypatch.setattr("random.sample", lambda candidates, count: [used, other])
        assert free_ports(1) == [other]


def test_where_connections_use_every_port_the_kernel_chooses(tmp_path, monkeypatch):
    every = tmp_path / "range"
    every.write_text("1024\t65535\n")
    monkeypatch.setattr("common.network.EPHEMERAL_PORTS", every)
    assert len(set(free_ports(3))) == 3
