"""Where the learner ranks meet: a key-value store that rank 0 serves at its host's address.

    rank 0    Rendezvous.open(address)  -> (address, port), which the driver gives to the other ranks
    all       meet(rank, ranks)         -> the store, once every rank has written its name to it

Rank 0 listens from `open` on. A port that is probed, closed and opened again later can meanwhile be
another process's.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

from common.errors import FleetError
from common.network import interface_of

POLL_S = 0.2


@dataclass
class Rendezvous:
    """One meeting of all ranks. Without `open`, rank 0 listens when it calls `meet`."""

    address: str
    port: int
    _store: dist.Store | None = field(default=None, repr=False)

    @classmethod
    def open(cls, address: str) -> Rendezvous:
        """Listens at a port that is free. Raises FleetError if this host does not have the address."""
        if interface_of(address) is None:
            # The store listens everywhere, and would then try for minutes to reach itself.
            raise FleetError(
                f"learner-0: no network interface of host {socket.gethostname()} has the address {address}; "
                "start its Ray node with --node-ip-address, an address that the other hosts reach"
            )
        store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return cls(address, store.port, store)

    def meet(self, rank: int, ranks: int, timeout_s: float) -> dist.Store:
        """Waits until all ranks are here. Raises FleetError after `timeout_s`; rank 0's names those
        who are missing."""
        store = self._connected(rank, timeout_s)
        store.set(f"here/{rank}", socket.gethostname())
        deadline = time.monotonic() + timeout_s
        while True:
            missing = [other for other in range(ranks) if not store.check([f"here/{other}"])]
            if not missing:
                return dist.PrefixStore("group", store)
            if time.monotonic() > deadline:
                names = ", ".join(f"learner-{other}" for other in missing)
                raise FleetError(
                    f"{names} did not come to {self.address}:{self.port} (learner-0, host "
                    f"{socket.gethostname()}) within {timeout_s:.0f} s; the hosts of all learners must reach "
                    "each other at every port: see firewalls, and `ray start --node-ip-address`"
                )
            time.sleep(POLL_S)

    def _connected(self, rank: int, timeout_s: float) -> dist.Store:
        if self._store is not None:
            return self._store
        timeout = timedelta(seconds=timeout_s)
        try:
            self._store = dist.TCPStore(
                self.address, self.port, is_master=rank == 0, timeout=timeout, wait_for_workers=False
            )
        except RuntimeError as error:
            raise FleetError(
                f"learner-{rank} (host {socket.gethostname()}) cannot reach learner-0 at "
                f"{self.address}:{self.port} within {timeout_s:.0f} s; the hosts of all learners must reach "
                "each other at every port: see firewalls, and `ray start --node-ip-address`"
            ) from error
        return self._store
