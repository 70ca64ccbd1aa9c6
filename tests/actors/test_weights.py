"""The file transport without an engine: what is sent, what is kept, and where it goes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actors.vllm_samples import samples_from_outputs
from actors.weights import transport
from actors.weights.files import iter_weights, weight_files
from actors.weights.tolerance import logprob_tolerance
from actors.weights.transport import FileTransport, make_transport
from common.errors import UserError


def gathered_weights(values):
    """Yields weights as ZeRO-3 does: each is overwritten as soon as the next is asked for."""
    for name, value in values.items():
        tensor = torch.full((2, 3), value)
        tensor.ds_id = 0
        yield name, tensor
        tensor.fill_(-1.0)


def test_gathered_weights_are_copied_before_they_are_freed(tmp_path):
    weights = gathered_weights({"a": 1.0, "b": 2.0})
    payload = FileTransport(tmp_path).send(weights, rank=0, version=1)
    stored = {name: tensor.unique().tolist() for name, tensor in iter_weights(payload.path)}
    assert stored == {"a": [1.0], "b": [2.0]}
    payload.validate()


def test_only_rank_0_writes_but_every_rank_walks_the_weights(tmp_path):
    walked = []
    weights = ((name, walked.append(name)) for name in ("a", "b"))
    assert FileTransport(tmp_path).send(weights, rank=1, version=1) is None
    assert walked == ["a", "b"]
    assert not list(tmp_path.iterdir())


def test_the_two_files_sent_last_are_kept(tmp_path):
    sender = FileTransport(tmp_path / "weights")
    for version in (7, 8, 3):  # 3: a run that goes on from an older checkpoint
        sender.send([("a", torch.ones(1))], rank=0, version=version)
    kept = sorted(path.name for path in sender.directory.iterdir())
    assert kept == ["00000003.safetensors", "00000008.safetensors"]
    sender.close()
    assert not sender.directory.exists()


def test_weights_dir_wins_and_close_leaves_other_runs_alone(tmp_path):
    shared = tmp_path / "shared"
    first, second = (make_transport(tmp_path / name, str(shared)) for name in ("run-1", "run-2"))
    for sender in (first, second):
        sender.send([("a", torch.ones(1))], rank=0, version=1)
    first.close()
    assert list(shared.iterdir()) == [second.directory]


def test_without_shared_memory_weights_go_to_the_run_directory(tmp_path, monkeypatch):
    assert make_transport(tmp_path, None).directory.parent == transport.SHARED_MEMORY
    monkeypatch.setattr(transport, "SHARED_MEMORY", tmp_path / "none")
    assert make_transport(tmp_path, None).directory == tmp_path / "weights"


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
