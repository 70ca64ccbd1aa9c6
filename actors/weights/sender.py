"""A learner rank's part in sending weights: buckets for a transport, or links and broadcasts over them.

`actors.learner.LearnerActor` has one of these and passes the calls of the driver on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from actors.weights.links import Broadcaster, LinkServer
from actors.weights.transport import Sent, WeightTransport
from common.network import host_address
from learners.named_tensors import NamedTensors

if TYPE_CHECKING:
    from learners.deepspeed_engine import DeepSpeedEngine


class WeightSender:
    """What a rank keeps from one call of a sync to the next."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._buckets: Iterator[tuple[NamedTensors, bool]] | None = None
        self._transport: WeightTransport | None = None
        self._links: LinkServer | None = None

    def send_bucket(
        self, engine: DeepSpeedEngine, transport: WeightTransport, version: int, number: int
    ) -> Sent:
        """Hands the bucket of this number to the transport; they are asked for in order."""
        if number == 0:
            self._buckets = engine.weight_buckets(transport.max_bytes, transport.adapters_only)
            self._transport = transport
        if self._buckets is None or self._transport is None:
            raise RuntimeError(f"bucket {number} of version {version}: no sync is under way")
        bucket, last = next(self._buckets)
        sent: Sent = (None, None)
        if self._transport.sends(self.rank):
            sent = self._transport.send(bucket, version, number, last)
        if last:
            self.give_up()
        return sent

    def give_up(self) -> None:
        """Frees what ZeRO-3 has gathered for the last bucket, also of an update that was not completed."""
        self._buckets = None

    def free_buffers(self) -> None:
        """Returns what the transport holds, when engines have loaded the last bucket."""
        if self._transport is not None:
            self._transport.close()
        self._transport = None

    def open_links(
        self, engine: DeepSpeedEngine, engines: dict[str, int], timeout_s: float
    ) -> dict[str, tuple[str, int]]:
        """See `LinkServer.open`."""
        if self._links is None:
            self._links = LinkServer(host_address(), engine.device, timeout_s)
        self._links.timeout_s = timeout_s
        return self._links.open(engines)

    def accept_links(self, engines: Sequence[str]) -> dict[str, str]:
        """The engines that did not connect in time, with the reason."""
        assert self._links is not None, "links are opened first"
        failed = {}
        for name in engines:
            try:
                self._links.accept(name)
            except RuntimeError as error:
                failed[name] = str(error).splitlines()[0]
                self._links.close(name)
        return failed

    def broadcast(
        self, engine: DeepSpeedEngine, engines: Sequence[str], max_bytes: int, adapters_only: bool
    ) -> dict[str, str]:
        """Sends all buckets over the links of this rank, if it has any; returns the engines whose links
        broke, with the reason."""
        broadcaster = None
        if self._links is not None:
            for name in set(self._links.links) - set(engines):
                self._links.close(name)
            broadcaster = Broadcaster(self._links)
        for number, (bucket, last) in enumerate(engine.weight_buckets(max_bytes, adapters_only)):
            if broadcaster is not None:
                broadcaster.send(bucket, number, last)
        if broadcaster is None:
            return {}
        broadcaster.wait()
        return broadcaster.failed
