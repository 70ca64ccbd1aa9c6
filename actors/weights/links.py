"""Links of the broadcast transport: one for each engine, between learner rank 0 and the workers of that
engine, so that an engine that dies breaks its own link alone.

    learner rank 0   LinkServer.open ► (host, port) ──driver──► engine workers   connect
    learner rank 0   LinkServer.accept              ◄──────────► all processes of the link have met
    each update      Broadcaster.send, bucket by bucket ──────► receive, verify, load

The rendezvous is a store that learner rank 0 keeps listening on from `open` on, so no port is looked up
and then lost to another process. On CPU a link is a gloo process group; on GPUs it is a NCCL communicator
of vLLM, which unlike torch's own can be aborted when a peer has died. Both have a deadline.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from actors.weights.payload import TensorMeta, byte_view, check_digest, digest, meta_of, split
from learners.named_tensors import NamedTensors

POLL_S = 0.001
"""How often a GPU is asked whether a transfer is done."""
FOLD = 512
"""Integers that are added up before the digest, where the content is on a GPU."""


class Transfer(Protocol):
    """A broadcast under way."""

    def wait(self) -> None:
        """Raises RuntimeError if a process of the link has died, or did not take part in time."""
        ...


class Link(Protocol):
    """A group of processes whose first one sends bytes to all others."""

    def broadcast(self, buffer: torch.Tensor) -> Transfer:
        """Starts to send `buffer` (rank 0) or to overwrite it with what rank 0 sends."""
        ...

    def close(self) -> None:
        """Gives the connections up, also if a transfer hangs."""
        ...


@dataclass
class GlooTransfer:
    work: Any
    buffer: torch.Tensor
    timeout_s: float

    def wait(self) -> None:
        self.work.wait(timedelta(seconds=self.timeout_s))


class GlooLink:
    """A link over TCP, for tensors of the CPU."""

    def __init__(self, store: Any, host: str, rank: int, size: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        options = dist.ProcessGroupGloo._Options()
        # By address: the name of a host is often an address that other hosts do not reach (127.0.1.1).
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = timedelta(seconds=timeout_s)
        self._group: Any = dist.ProcessGroupGloo(store, rank, size, options)

    def broadcast(self, buffer: torch.Tensor) -> GlooTransfer:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        return GlooTransfer(self._group.broadcast([buffer], options), buffer, self.timeout_s)

    def close(self) -> None:
        self._group = None


@dataclass
class NcclTransfer:
    link: NcclLink
    done: Any
    buffer: torch.Tensor

    def wait(self) -> None:
        deadline = time.monotonic() + self.link.timeout_s
        # Not by synchronizing: a kernel that waits for a dead peer never ends.
        while not self.done.query():
            if time.monotonic() > deadline:
                self.link.close()
                raise RuntimeError(f"no end of a transfer within {self.link.timeout_s:g} s")
            time.sleep(POLL_S)


class NcclLink:
    """A link between GPUs, on a stream of its own."""

    def __init__(self, store: Any, rank: int, size: int, timeout_s: float, device: torch.device) -> None:
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup

        self.timeout_s = timeout_s
        self._communicator: Any = PyNcclCommunicator(StatelessProcessGroup(rank, size, store), device)
        # Where NCCL is missing, the communicator does nothing, without an error.
        if self._communicator.disabled:
            raise RuntimeError("NCCL is not available to vLLM, which sync.transport=broadcast needs on GPUs")
        self._stream = torch.cuda.Stream(device)

    def broadcast(self, buffer: torch.Tensor) -> NcclTransfer:
        self._stream.wait_stream(torch.cuda.current_stream(buffer.device))
        self._communicator.broadcast(buffer, 0, self._stream)
        done = torch.cuda.Event()
        done.record(self._stream)
        return NcclTransfer(self, done, buffer)

    def close(self) -> None:
        self._communicator.destroy()


def make_link(store: Any, host: str, rank: int, size: int, timeout_s: float, device: torch.device) -> Link:
    """A link for tensors of `device`; returns when all its processes have met. `host` is the address of
    this process."""
    if device.type == "cuda":
        return NcclLink(store, rank, size, timeout_s, device)
    return GlooLink(store, host, rank, size, timeout_s)


def connect(host: str, port: int, rank: int, size: int, timeout_s: float, device: torch.device) -> Link:
    """The link of an engine's worker; `rank` counts from 1. Returns when all its processes have met;
    raises RuntimeError if they do not within `timeout_s`."""
    # The address by which this host reaches the learner is the one by which the learner reaches it.
    with socket.create_connection((host, port), timeout_s) as probe:
        own_address = probe.getsockname()[0]
    store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
    return make_link(store, own_address, rank, size, timeout_s, device)


class LinkServer:
    """Learner rank 0's side: the links to all engines, by the names of the engines."""

    def __init__(self, host: str, device: torch.device, timeout_s: float) -> None:
        """`host` is the address at which engines reach this process."""
        self.host, self.device, self.timeout_s = host, device, timeout_s
        self._stores: dict[str, tuple[Any, int]] = {}
        self.links: dict[str, Link] = {}

    def open(self, engines: dict[str, int]) -> dict[str, tuple[str, int]]:
        """Opens a rendezvous for each of `engines` (name -> number of its workers); returns where to
        connect. A link that an engine of that name had is given up."""
        addresses = {}
        for name, workers in engines.items():
            self.close(name)
            store = dist.TCPStore(
                self.host,
                0,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=self.timeout_s),
            )
            self._stores[name] = (store, 1 + workers)
            addresses[name] = (self.host, store.port)
        return addresses

    def accept(self, name: str) -> None:
        """Returns when the workers of an engine have connected. Raises RuntimeError if they do not in
        time."""
        store, size = self._stores[name]
        self.links[name] = make_link(store, self.host, 0, size, self.timeout_s, self.device)

    def close(self, name: str) -> None:
        link = self.links.pop(name, None)
        if link is not None:
            link.close()
        self._stores.pop(name, None)


@dataclass
class Broadcaster:
    """Sends the buckets of one update over all links. While one is under way, the next is gathered."""

    server: LinkServer
    failed: dict[str, str] = field(default_factory=dict)
    """Engines whose links broke during the update, with the reason."""
    _under_way: list[tuple[str, Transfer]] = field(default_factory=list)

    def send(self, bucket: NamedTensors, number: int, last: bool) -> None:
        """Starts to send a bucket; its tensors may be freed afterwards."""
        tensors = [meta_of(name, tensor) for name, tensor in bucket]
        buffer = torch.empty(
            sum(meta.nbytes for meta in tensors), dtype=torch.uint8, device=self.server.device
        )
        offset = 0
        for (_, tensor), meta in zip(bucket, tensors, strict=True):
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            buffer[offset : offset + meta.nbytes].copy_(flat)
            offset += meta.nbytes
        text = json.dumps(
            {"number": number, "last": last, "digest": device_digest(buffer), "tensors": tensors}
        ).encode()
        header = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(self.server.device)
        length = torch.tensor([len(text)], dtype=torch.int64, device=self.server.device)
        self.wait()
        for part in (length, header, buffer):
            for name, link in self.server.links.items():
                if name in self.failed:
                    continue
                try:
                    self._under_way.append((name, link.broadcast(part)))
                except RuntimeError as error:
                    self._give_up(name, error)

    def wait(self) -> None:
        """Waits until what was started has been sent, and drops the links that broke."""
        for name, transfer in self._under_way:
            if name in self.failed:
                continue
            try:
                transfer.wait()
            except RuntimeError as error:
                self._give_up(name, error)
        self._under_way.clear()
        for name in self.failed:
            self.server.close(name)

    def _give_up(self, name: str, error: RuntimeError) -> None:
        self.failed[name] = str(error).splitlines()[0]


def receive(link: Link, device: torch.device) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """An engine worker's side of one update: the tensors of each bucket, verified. Raises RuntimeError if
    the link breaks or a bucket is not what was sent."""
    number, last = 0, False
    while not last:
        length = torch.zeros(1, dtype=torch.int64, device=device)
        link.broadcast(length).wait()
        text = torch.empty(int(length.item()), dtype=torch.uint8, device=device)
        link.broadcast(text).wait()
        header = json.loads(bytes(text.cpu().numpy()))
        if header["number"] != number:
            raise RuntimeError(f"bucket {header['number']} arrived in place of bucket {number}")
        tensors = [TensorMeta(name, dtype, tuple(shape)) for name, dtype, shape in header["tensors"]]
        # New for every bucket: vLLM keeps the tensors until their layer is complete, maybe with tensors
        # of the next bucket.
        buffer = torch.empty(sum(meta.nbytes for meta in tensors), dtype=torch.uint8, device=device)
        link.broadcast(buffer).wait()
        check_digest(device_digest(buffer), header["digest"], f"bucket {number}")
        yield split(buffer, tensors)
        number, last = number + 1, header["last"]


def device_digest(buffer: torch.Tensor, fold: bool | None = None) -> str:
    """Digest of a buffer of bytes that stays where it is: on a GPU (or with `fold`) it is folded there, 512
    integers into their sum, and only the sums come to the CPU."""
    if fold is None:
        fold = buffer.device.type != "cpu"
    if not fold:
        return digest([buffer])
    size = buffer.numel() // (8 * FOLD) * (8 * FOLD)
    sums = buffer[:size].view(torch.int64).view(-1, FOLD).sum(1)
    return digest([byte_view(sums.cpu()), byte_view(buffer[size:].cpu())])
