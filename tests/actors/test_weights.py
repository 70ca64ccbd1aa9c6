"""Weight transports without an engine: what is sent, what is kept, where it goes and how it is checked."""

import json
import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from actors.vllm_samples import samples_from_outputs
from actors.weights import ipc, transport
from actors.weights.adapters import merged_with_base
from actors.weights.files import iter_weights, weight_files
from actors.weights.links import Broadcaster, LinkServer, connect, device_digest, receive
from actors.weights.payload import WeightPayload, meta_of, split
from actors.weights.tolerance import logprob_tolerance
from actors.weights.transport import (
    FileTransport,
    ObjectStoreTransport,
    choose_transport,
    weights_directory,
)
from common.errors import UserError
from learners.lora import merged_weights
from learners.weight_buckets import adapter_bucket
from tests.learners.test_weight_buckets import lora_model

CPU = torch.device("cpu")
BUCKETS = [
    [("norm", torch.ones(3, dtype=torch.bfloat16)), ("head", torch.arange(6.0).view(2, 3))],
    [("flag", torch.tensor([True])), ("scale", torch.tensor(2.5, dtype=torch.float64))],
]


def assert_same(received, sent):
    assert [name for name, _ in received] == [name for name, _ in sent]
    for (name, one), (_, other) in zip(received, sent, strict=True):
        assert one.dtype == other.dtype, name
        assert one.equal(other), name


def test_a_file_holds_the_bucket_and_safetensors_reads_it(tmp_path):
    payload, data = FileTransport(tmp_path).send(BUCKETS[0], version=1, number=0, last=False)
    assert data is None
    assert (payload.number, payload.last) == (0, False)
    payload.validate()
    assert_same(sorted(iter_weights(payload.path)), sorted(BUCKETS[0]))
    with safe_open(payload.path, framework="pt") as file:
        assert set(file.keys()) == {"norm", "head"}


def test_changed_truncated_and_missing_files_are_refused(tmp_path):
    payload, _ = FileTransport(tmp_path).send(BUCKETS[0], version=1)
    with open(payload.path, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(RuntimeError, match="the content is not what was sent"):
        payload.validate()
    with pytest.raises(UserError, match="no such file"):
        replace(payload, path="/nowhere").validate()


def test_the_two_files_sent_last_are_kept(tmp_path):
    sender = FileTransport(tmp_path / "weights")
    # 3: a run that goes on from an older checkpoint.
    for version, number in ((7, 0), (7, 1), (3, 0)):
        sender.send([("a", torch.ones(1))], version, number)
    kept = sorted(path.name for path in sender.directory.iterdir())
    assert kept == ["00000003-00000.safetensors", "00000007-00001.safetensors"]
    sender.close()
    assert not sender.directory.exists()


def test_weights_dir_wins_and_close_leaves_other_runs_alone(tmp_path):
    shared = tmp_path / "shared"
    first, second = (
        FileTransport(weights_directory(tmp_path / name, str(shared))) for name in ("run-1", "run-2")
    )
    for sender in (first, second):
        sender.send([("a", torch.ones(1))], version=1)
    first.close()
    assert list(shared.iterdir()) == [second.directory]


def test_without_shared_memory_weights_go_to_the_run_directory(tmp_path, monkeypatch):
    assert weights_directory(tmp_path, None).parent == transport.SHARED_MEMORY
    monkeypatch.setattr(transport, "SHARED_MEMORY", tmp_path / "none")
    assert weights_directory(tmp_path, None) == tmp_path / "weights"


def test_arrays_for_the_object_store_share_the_memory_of_the_weights():
    payload, arrays = ObjectStoreTransport().send(BUCKETS[0], version=1)
    assert [array.nbytes for array in arrays.values()] == [6, 24]
    assert np.shares_memory(arrays["head"], BUCKETS[0][1][1].numpy())
    payload.validate(arrays)


def test_arrays_that_are_not_those_that_were_sent_are_refused():
    payload, arrays = ObjectStoreTransport().send(BUCKETS[0], version=1)
    with pytest.raises(RuntimeError, match="names are not those"):
        payload.validate({"norm": arrays["norm"]})
    with pytest.raises(RuntimeError, match="content is not what was sent"):
        payload.validate({**arrays, "head": arrays["head"] + 1})


def test_adapters_added_to_the_base_are_the_merged_weights_to_the_last_bit():
    for dtype in (torch.float32, torch.bfloat16):
        model = lora_model().to(dtype)
        base = [(name.replace(".base_layer.", "."), weight) for name, weight in model.named_parameters()]
        base = [(name, weight.data) for name, weight in base if ".lora_" not in name]
        [(bucket, _)] = adapter_bucket(model, lambda parameters: nullcontext())
        merged = dict(merged_with_base(base, dict(bucket)))
        expected = dict(merged_weights(model, lambda parameters: nullcontext()))
        assert merged.keys() == expected.keys()
        assert all(merged[name].equal(expected[name]) for name in expected)
    with pytest.raises(RuntimeError, match=r"no weight model\.layers\.0"):
        list(merged_with_base(base[:1], dict(bucket)))


@pytest.mark.parametrize(
    ("requested", "device", "colocated", "hosts", "weights_dir", "expected"),
    [
        ("auto", "cpu", False, 1, None, "file"),
        ("auto", "cpu", True, 2, None, "object_store"),
        ("auto", "cpu", False, 2, "/shared", "file"),
        ("auto", "cuda", False, 2, "/shared", "broadcast"),
        ("auto", "cuda", True, 1, None, "ipc"),
        ("file", "cuda", True, 4, None, "file"),
    ],
)
def test_transport_of_a_layout(requested, device, colocated, hosts, weights_dir, expected):
    assert choose_transport(requested, device, colocated, hosts, weights_dir) == expected


class Engine:
    """The workers of one engine as threads: connect to the learner and receive one update."""

    def __init__(self, name, address, workers):
        self.name, self.received, self.errors = name, {}, []
        self.threads = [
            threading.Thread(target=self._work, args=(address, rank, 1 + workers), daemon=True)
            for rank in range(1, 1 + workers)
        ]
        for thread in self.threads:
            thread.start()

    def _work(self, address, rank, size):
        try:
            link = connect(*address, rank, size, 20, CPU)
            self.received[rank] = list(receive(link, CPU))
        except RuntimeError as error:
            self.errors.append(error)

    def join(self):
        for thread in self.threads:
            thread.join(20)


@pytest.fixture
def linked():
    """(server, engines) of two engines, with one worker and with two."""
    server = LinkServer("127.0.0.1", CPU, timeout_s=20)
    workers = {"rollout-0": 1, "rollout-1": 2}
    addresses = server.open(workers)
    engines = [Engine(name, addresses[name], count) for name, count in workers.items()]
    for name in workers:
        server.accept(name)
    return server, engines


def test_every_worker_receives_every_bucket(linked):
    server, engines = linked
    sender = Broadcaster(server)
    for number, bucket in enumerate(BUCKETS):
        sender.send(bucket, number, last=number == 1)
    sender.wait()
    assert sender.failed == {}
    for engine in engines:
        engine.join()
        assert not engine.errors
        for buckets in engine.received.values():
            for received, sent in zip(buckets, BUCKETS, strict=True):
                assert_same(received, sent)
    assert sorted(engines[1].received) == [1, 2]


def test_a_broken_link_is_named_and_the_other_engine_gets_everything(linked):
    server, engines = linked
    sender = Broadcaster(server)
    sender.send(BUCKETS[0], 0, last=False)
    sender.wait()

    class Broken:
        def broadcast(self, buffer):
            raise RuntimeError("Connection reset by peer\nmore")

        def close(self):
            pass

    server.links["rollout-0"] = Broken()
    sender.send(BUCKETS[1], 1, last=True)
    sender.wait()
    assert sender.failed == {"rollout-0": "Connection reset by peer"}
    engines[1].join()
    assert len(engines[1].received) == 2
    assert list(server.links) == ["rollout-1"]


def test_a_bucket_that_changed_on_the_way_is_refused(linked, monkeypatch):
    server, engines = linked
    monkeypatch.setattr("actors.weights.links.device_digest", lambda buffer: str(torch.rand(1)))
    sender = Broadcaster(server)
    sender.send(BUCKETS[0], 0, last=True)
    sender.wait()
    for engine in engines:
        engine.join()
        assert all("the content is not what was sent" in str(error) for error in engine.errors)
        assert len(engine.errors) == len(engine.threads)


def test_a_rendezvous_that_nobody_comes_to_ends_at_the_deadline():
    server = LinkServer("127.0.0.1", CPU, timeout_s=1)
    server.open({"rollout-0": 1})
    with pytest.raises(RuntimeError):
        server.accept("rollout-0")


def test_tensors_of_a_buffer_are_split_at_any_alignment():
    bucket = BUCKETS[0]
    buffer = torch.cat([tensor.reshape(-1).view(torch.uint8) for _, tensor in bucket])
    assert_same(split(buffer, [meta_of(name, tensor) for name, tensor in bucket]), bucket)


def test_folded_digest_sees_each_byte():
    # What a GPU folds before the digest, on the CPU here: full rows of 512 integers and the rest.
    buffer = torch.zeros(3 * 4096 + 5, dtype=torch.uint8)
    digests = {fold_digest(buffer)}
    for index in (0, 4096, 12287, 12292):
        changed = buffer.clone()
        changed[index] = 1
        digests.add(fold_digest(changed))
    assert len(digests) == 5


def fold_digest(buffer):
    """`device_digest` as a GPU computes it."""
    return device_digest(buffer, fold=True)


def test_handles_of_all_ranks_are_merged_and_different_weights_refused():
    first = WeightPayload("ipc", digest="a", handles={"GPU-0": (1,)})
    second = WeightPayload("ipc", digest="a", handles={"GPU-1": (2,)})
    assert ipc.merge_handles([first, second]).handles == {"GPU-0": (1,), "GPU-1": (2,)}
    with pytest.raises(RuntimeError, match="different weights"):
        ipc.merge_handles([first, replace(second, digest="b")])


def test_an_engine_on_a_gpu_without_a_rank_says_so(monkeypatch):
    monkeypatch.setattr(ipc, "gpu_id", lambda device: "GPU-2")
    with pytest.raises(RuntimeError, match="no learner rank is on GPU GPU-2"):
        ipc.map_tensors({"GPU-0": (1,)}, "a", [], torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("dtype", "configured", "device", "expected"),
    [
        ("float32", None, "cpu", 1e-5),
        ("bfloat16", None, "cpu", 0.05),
        ("float32", 0.1, "cpu", 0.1),
        ("float32", None, "cuda", 5e-3),
        ("bfloat16", None, "cuda", 0.05),
        ("float32", 1e-6, "cuda", 1e-6),
    ],
)
def test_logprob_tolerance(dtype, configured, device, expected):
    assert logprob_tolerance(dtype, configured, device) == expected


def finished_output(prompt, response, spans):
    """What vLLM returns of a finished request; spans are (version, start, end)."""
    versions = [SimpleNamespace(version=v, start=start, end=end) for v, start, end in spans]
    logprobs = SimpleNamespace(logprobs=[-0.5 * (i + 1) for i in range(len(response))])
    completion = SimpleNamespace(token_ids=response, logprobs=logprobs, weight_versions=versions)
    return SimpleNamespace(prompt_token_ids=prompt, outputs=[completion])


def test_outputs_become_samples_with_a_version_for_each_token():
    outputs = [
        finished_output([5, 6], [7, 8, 2], [("default", 0, 1), ("4", 1, 3)]),
        finished_output([9], [7], [("4", 0, 1)]),
    ]
    samples = samples_from_outputs(outputs, np.array([3, 1]), end_token=2, loaded_version=3)
    assert samples.tokens_N.tolist() == [5, 6, 7, 8, 2, 9, 7]
    assert samples.offsets.tolist() == [0, 5, 7]
    assert samples.prompt_lengths_B.tolist() == [2, 1]
    assert samples.logprobs_N.tolist() == [0, 0, -0.5, -1.0, -1.5, 0, -0.5]
    assert samples.versions_N.tolist() == [-1, -1, 3, 4, 4, -1, 4]
    assert samples.ended_B.tolist() == [True, False]


def test_versions_that_are_names_count_as_zero():
    outputs = [finished_output([5], [7, 2], [("ppo-20", 0, 2)])]
    samples = samples_from_outputs(outputs, np.array([0]), end_token=2, loaded_version=None)
    assert samples.versions_N.tolist() == [-1, 0, 0]


def sharded_folder(folder):
    """Two shards with their index; beside them the same weights in one file of another layout, and a head
    that is no part of the model."""
    shards = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}
    for file, name in shards.items():
        save_file({name: torch.zeros(2)}, folder / file)
    for stray in ("consolidated", "value_head"):
        save_file({stray: torch.ones(2)}, folder / f"{stray}.safetensors")
    index = {"weight_map": {name: file for file, name in shards.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_only_the_files_that_the_index_names_are_read(tmp_path):
    assert [name for name, _ in iter_weights(sharded_folder(tmp_path))] == ["a", "b"]


def test_a_single_file_is_read_alone(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    assert [name for name, _ in iter_weights(tmp_path)] == ["a"]


def test_a_missing_shard_and_a_folder_without_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="no weights in safetensors files"):
        weight_files(tmp_path)
    sharded_folder(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"names model-00002-of-00002\.safetensors, which is missing"):
        weight_files(tmp_path)
