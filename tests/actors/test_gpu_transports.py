"""Transports that need GPUs: skipped on a host without."""

import multiprocessing

import pytest
import torch

from actors.weights import ipc
from actors.weights.ipc import IpcTransport
from actors.weights.links import Broadcaster, LinkServer, connect, receive

pytestmark = pytest.mark.gpu

BUCKETS = [
    [("norm", torch.ones(3, dtype=torch.bfloat16)), ("head", torch.arange(60000.0).view(2, -1))],
    [("embed", torch.arange(2**22, dtype=torch.int32).view(2, -1))],
]


def on_gpu(bucket, index=0):
    return [(name, tensor.to(f"cuda:{index}")) for name, tensor in bucket]


def sums(bucket):
    return [(name, tuple(tensor.shape), float(tensor.double().sum())) for name, tensor in bucket]


def map_buckets(payloads, results):
    device = torch.device("cuda", 0)
    while (payload := payloads.get()) is not None:
        results.put(sums(ipc.map_tensors(payload.handles, payload.digest, payload.tensors, device)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_another_process_maps_what_a_rank_sends_and_the_memory_comes_back():
    context = multiprocessing.get_context("spawn")
    payloads, results = context.Queue(), context.Queue()
    process = context.Process(target=map_buckets, args=(payloads, results))
    process.start()
    transport, free = IpcTransport(max_bytes=1 << 22), []
    for version in range(4):
        for number, bucket in enumerate(BUCKETS):
            payload, _ = transport.send(on_gpu(bucket), version, number, number == 1)
            payloads.put(payload)
            assert results.get(timeout=60) == sums(bucket)
        transport.close()
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info()[0])
    payloads.put(None)
    process.join(60)
    assert free[-1] >= free[1] - (1 << 21)


def receive_on_gpu(address, results):
    link = connect(*address, 1, 2, 60, torch.device("cuda", 1))
    for bucket in receive(link, torch.device("cuda", 1)):
        results.put(sums(bucket))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs two CUDA devices")
def test_a_broadcast_reaches_another_gpu():
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    server = LinkServer("127.0.0.1", torch.device("cuda", 0), timeout_s=60)
    address = server.open({"rollout-0": 1})["rollout-0"]
    process = context.Process(target=receive_on_gpu, args=(address, results))
    process.start()
    server.accept("rollout-0")
    sender = Broadcaster(server)
    for number, bucket in enumerate(BUCKETS):
        sender.send(on_gpu(bucket), number, number == 1)
    sender.wait()
    assert sender.failed == {}
    assert [results.get(timeout=60) for _ in BUCKETS] == [sums(bucket) for bucket in BUCKETS]
    process.join(60)
