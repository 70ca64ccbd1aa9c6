"""The learner ranks meet at an address of rank 0, or somebody says who is missing."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.errors import FleetError
from learners.rendezvous import Rendezvous
from tests.runs import free_port


def test_ranks_meet_at_a_port_that_rank_0_holds():
    first = Rendezvous.open("127.0.0.1")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", first.port))
    with ThreadPoolExecutor() as pool:
        stores = [pool.submit(first.meet, 0, 2, 60.0)]
        stores.append(pool.submit(Rendezvous("127.0.0.1", first.port).meet, 1, 2, 60.0))
        stores[0].result().set("key", "value")
        assert stores[1].result().get("key") == b"value"


def test_ranks_that_do_not_come_are_named():
    first = Rendezvous.open("127.0.0.1")
    with ThreadPoolExecutor() as pool:
        comes = pool.submit(Rendezvous("127.0.0.1", first.port).meet, 2, 4, 2.0)
        named = r"learner-1, learner-3 did not come to 127.0.0.1:\d+ .*within 3 s"
        with pytest.raises(FleetError, match=named):
            first.meet(0, 4, 3.0)
        assert isinstance(comes.exception(), FleetError)


def test_an_unreachable_rank_0_is_named_by_the_other():
    port = free_port()
    with pytest.raises(
        FleetError, match=rf"learner-1 .*cannot reach learner-0 at 127.0.0.1:{port} within 1 s"
    ):
        Rendezvous("127.0.0.1", port).meet(1, 2, 1.0)


def test_an_address_that_this_host_does_not_have_is_refused():
    with pytest.raises(FleetError, match=r"has the address 192.0.2.7; .*--node-ip-address"):
        Rendezvous.open("192.0.2.7")
