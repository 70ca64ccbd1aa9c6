"""Updates of an engine in the test's process by each transport that CPU has, in several buckets."""

import threading
from contextlib import nullcontext

import torch

from actors.weights.links import Broadcaster, LinkServer
from actors.weights.payload import WeightPayload
from actors.weights.transport import FileTransport, ObjectStoreTransport
from learners.weight_buckets import weight_buckets

BUCKET_BYTES = 1 << 16


def buckets_of(model):
    """(number, bucket, last) of a model's weights."""
    for number, (bucket, last) in enumerate(weight_buckets(model, lambda _: nullcontext(), BUCKET_BYTES)):
        yield number, bucket, last


def perturb(model, seed):
    """Changes every weight, so that an update that does not arrive is seen."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 * parameter.std().clamp(min=0.1))


def update(actor, model, kind, version, folder):
    """Brings the model's weights into an engine."""
    if kind == "broadcast":
        update_by_broadcast(actor, model, version)
        return
    transport = ObjectStoreTransport() if kind == "object_store" else FileTransport(folder / "buckets")
    for number, bucket, last in buckets_of(model):
        payload, arrays = transport.send(bucket, version, number, last)
        actor.update_weights(payload, version, arrays=arrays)


def update_by_broadcast(actor, model, version):
    """A thread is the learner."""
    server = LinkServer("127.0.0.1", torch.device("cpu"), timeout_s=120)
    address = server.open({"rollout-0": actor.ready()["workers"]})["rollout-0"]

    def send():
        server.accept("rollout-0")
        broadcaster = Broadcaster(server)
        for number, bucket, last in buckets_of(model):
            broadcaster.send(bucket, number, last)
        broadcaster.wait()

    learner = threading.Thread(target=send)
    learner.start()
    actor.join_link(address, 120)
    actor.update_weights(WeightPayload("broadcast"), version)
    learner.join()
    server.close("rollout-0")
