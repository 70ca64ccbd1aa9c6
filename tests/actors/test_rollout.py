"""A real vLLM engine: its log-probabilities are the model's, and an update changes every kind of weight or nothing."""

import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from actors.config import Decoding, RolloutConfig
from actors.weights.transport import FileTransport
from common.errors import UserError
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy
from tests.learners.fixtures import MODEL, TEXTS

PROMPTS = [[10, 11, 12, 13], [40, 41, 42], [7, 8, 9, 10, 11, 12, 13, 14]]
# One weight of every kind; tied models have no head of their own.
KINDS = (
    "embed_tokens",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "layernorm",
    "model.norm",
)


def untied() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def reference(model, sequences):
    """Log-probability of every token but the first, by transformers."""
    found = []
    with torch.no_grad():
        for s in sequences:
            logits = model(torch.tensor([s])).logits[0, :-1].log_softmax(-1)
            found.append(logits.gather(1, torch.tensor(s[1:])[:, None]).squeeze(1).numpy())
    return np.concatenate(found)


def pumped(actor, model, transport, decoding, end, whole):
    """Groups that come and go, with new weights in the middle: what `test_groups_…` looks at."""
    found = {}
    new = [(10 + i, i, prompt, [2 * i, 2 * i + 1]) for i, prompt in enumerate(PROMPTS)]
    told, samples = actor.run_groups(new[:2], decoding, end, most=2, oldest=0)
    found["first"] = (told, samples.prompt_ids_B.tolist())
    found["as generated"] = all(samples.response(b).tolist() == whole.response(b).tolist() for b in range(4))
    long = Decoding(max_tokens=40)
    told, samples = actor.run_groups(
        [(20, 7, [10, 11], [2]), (21, 8, [12, 13], [3])], long, end, most=2, oldest=0, seconds=0
    )
    found["nothing yet"] = (told, samples)
    for _ in range(5):
        actor._step()
    found["beside"] = (
        actor.generate(PROMPTS[:1], [0], Decoding(max_tokens=2), end, seeds=[0]).response(0).tolist()
    )
    actor.update_weights(transport.send(model.named_parameters(), 0, 6), 6)
    told, samples = actor.run_groups([(22, 9, [10, 11], [4])], long, end, most=1, oldest=0)
    found["across"] = (told, samples.versions_N[samples.response_mask_N].tolist())
    expected = np.concatenate(
        [[0.0, *reference(model, [samples.sequence(b).tolist()])] for b in range(samples.size)]
    )
    found["error"] = float(np.abs(expected - samples.logprobs_N)[samples.response_mask_N].max())
    actor.update_weights(transport.send(model.named_parameters(), 0, 7), 7, oldest=6)
    found["dropped"] = actor.run_groups([], long, end, most=9, oldest=0)
    found["left"] = actor.engine.get_num_unfinished_requests()
    actor.update_weights(transport.send(model.named_parameters(), 0, 5), 5)
    return found


def exercise(folder, queue):
    from actors.rollout import RolloutActor

    config = RolloutConfig(kv_cache_gib=0.05, max_sequences=128, max_model_len=64, threads=2)
    actor = RolloutActor("rollout-0", str(folder / "model"), config, seed=0, version=5)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    decoding, end = Decoding(max_tokens=12), model.config.eos_token_id
    stops = (
        model.generation_config.eos_token_id
    )  # the end of a turn, and for our own tokenizer the end of a text
    result = {"end": end, "stops": stops if isinstance(stops, list) else [stops]}

    seeds = list(range(6))
    first = actor.generate(PROMPTS, [0, 1, 2], decoding, end_token=end, n=2, seeds=seeds)
    alone = actor.generate(PROMPTS[1:2], [1], decoding, end_token=end, n=2, seeds=seeds[2:4])
    result["same alone"] = [first.response(2).tolist(), first.response(3).tolist()] == [
        alone.response(0).tolist(),
        alone.response(1).tolist(),
    ]
    result["prompt ids"] = first.prompt_ids_B.tolist()
    result["versions"] = set(first.versions_N[first.response_mask_N].tolist())
    result["lengths"] = first.response_lengths_B.tolist()
    result["ended"] = first.ended_B.tolist()
    result["last"] = [int(first.response(b)[-1]) for b in range(first.size)]
    sequences = [first.sequence(b).tolist() for b in range(first.size)]
    expected = np.concatenate([[0.0, *reference(model, [s])] for s in sequences])
    result["sampled error"] = float(np.abs(expected - first.logprobs_N)[first.response_mask_N].max())

    # More tokens than vLLM takes in one step (4,096): no seeded prompt may be taken in two parts.
    crowd = actor.generate(
        [list(range(8, 58))] * 128, range(128), Decoding(max_tokens=4), end, seeds=list(range(128))
    )
    result["crowd"] = crowd.size

    result["run_groups"] = pumped(actor, model, FileTransport(folder / "flow"), decoding, end, first)
    transport, version = FileTransport(folder / "weights"), 5
    before = np.concatenate(actor.prompt_logprobs(sequences))
    result["changes"], names = {}, [*KINDS, *([] if model.config.tie_word_embeddings else ["lm_head"])]
    for kind in names:
        name = next(n for n, _ in model.named_parameters() if kind in n)
        with torch.no_grad():
            parameter = dict(model.named_parameters())[name]
            parameter.add_(torch.randn_like(parameter) * 0.3 * parameter.std().clamp(min=0.3))
        version += 1
        actor.update_weights(transport.send(model.named_parameters(), 0, version), version)
        after = np.concatenate(actor.prompt_logprobs(sequences))
        result["changes"][kind] = (
            float(np.abs(after - before).max()),
            float(np.abs(after - reference(model, sequences)).mean()),
        )
        before = after
    again = actor.generate(PROMPTS, [0, 1, 2], decoding, end_token=end)
    result["new versions"] = (set(again.versions_N[again.response_mask_N].tolist()), version)

    payload = transport.send(model.named_parameters(), 0, version + 1)
    damaged = folder / "damaged.safetensors"
    shutil.copy(payload["path"], damaged)
    with open(damaged, "r+b") as file:
        file.truncate(damaged.stat().st_size - 100)
    result["refused"] = []
    for bad in (
        {**payload, "path": str(damaged)},
        {**payload, "path": "/nowhere"},
        {**payload, "header": "0"},
    ):
        try:
            actor.update_weights(bad, version + 1)
        except (UserError, SystemExit) as fault:
            result["refused"].append((type(fault).__name__, str(fault)))
    result["unharmed"] = float(np.abs(np.concatenate(actor.prompt_logprobs(sequences)) - before).max())
    result["version after"] = actor.version == version
    try:
        actor.generate([[5] * 60], [0], decoding, end_token=end)
    except UserError as fault:
        result["too long"] = str(fault)
    queue.put(result)


@pytest.fixture(scope="module", params=["tied", "untied"])
def result(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = train_tokenizer(TEXTS, MODEL.vocab_size)
    model = build_policy(MODEL, tokenizer, seed=1) if request.param == "tied" else untied()
    model.save_pretrained(folder / "model")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=exercise, args=(folder, queue))
    process.start()
    found = queue.get(timeout=240)
    process.join(60)
    return found


def test_samples_are_the_models_and_belong_to_their_seeds(result):
    assert result["sampled error"] < 1e-5
    assert result["same alone"]
    assert result["crowd"] == 128
    assert result["prompt ids"] == [0, 0, 1, 1, 2, 2]
    assert result["versions"] == {5}
    for length, ended, last in zip(result["lengths"], result["ended"], result["last"], strict=True):
        assert ended == (last == result["end"])
        assert length == 12 or last in result["stops"]


def test_groups_come_and_go_and_those_at_work_go_on_under_new_weights(result):
    found = result["run_groups"]
    assert found["first"] == ({"done": [10, 11], "dropped": []}, [0, 0, 1, 1])
    assert found["as generated"]
    assert found["nothing yet"] == ({"done": [], "dropped": []}, None)
    assert found["beside"]
    told, versions = found["across"]
    assert told == {"done": [20], "dropped": []}
    assert sorted(set(versions)) == [5, 6]
    assert versions == sorted(versions)
    assert found["error"] < 1e-5
    told, samples = found["dropped"]
    assert told == {"done": [22], "dropped": [21]}
    assert set(samples.versions_N[samples.response_mask_N].tolist()) <= {6, 7}
    assert found["left"] == 0


def test_an_update_changes_every_kind_of_weight(result):
    for kind, (moved, error) in result["changes"].items():
        assert moved > 1e-3, f"{kind} did not reach the engine"
        assert error < 1e-5, f"{kind} reached the engine wrong"
    versions, last = result["new versions"]
    assert versions == {last}


def test_a_damaged_payload_ends_the_process_and_one_that_is_not_there_is_the_users_to_mend(result):
    (short, why_short), (missing, why_missing), (changed, why_changed) = result["refused"]
    assert (short, missing, changed) == ("SystemExit", "UserError", "SystemExit")
    assert "the file is incomplete" in why_short
    assert "no such file" in why_missing
    assert "names and shapes are not those that were sent" in why_changed
    assert result["unharmed"] == 0
    assert result["version after"]
    assert "more than the engine's 64" in result["too long"]
