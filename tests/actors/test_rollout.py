"""A real vLLM engine: its log-probabilities are the model's, and an update changes every kind of
weight or nothing.

The engine runs in a process of its own (`exercise_engine`), which puts everything that the tests
look at into one dict: a start takes several seconds, and a refused payload must not end the test
process.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from actors.config import Decoding, RolloutConfig
from actors.prompt_group import GroupStatus, PromptGroup
from actors.weights.transport import FileTransport
from common.errors import UserError
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy
from tests.actors.own_process import in_own_process
from tests.actors.updates import perturb, update
from tests.learners.fixtures import MODEL, TEXTS

PROMPTS = [[10, 11, 12, 13], [40, 41, 42], [7, 8, 9, 10, 11, 12, 13, 14]]
LOADED_VERSION = 5
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


def untied_model() -> LlamaForCausalLM:
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


def plain_logprobs(model, sequences):
    """Log-probability of every token but the first of each sequence, by transformers."""
    logprobs = []
    with torch.no_grad():
        for sequence in sequences:
            log_softmax = model(torch.tensor([sequence])).logits[0, :-1].log_softmax(-1)
            chosen = log_softmax.gather(1, torch.tensor(sequence[1:])[:, None])
            logprobs.append(chosen.squeeze(1).numpy())
    return np.concatenate(logprobs)


def max_sampling_error(model, samples):
    """Largest difference between the engine's log-probability of a response token and the
    model's."""
    expected = []
    for b in range(samples.size):
        expected += [[0.0], plain_logprobs(model, [samples.sequence(b).tolist()])]
    error_N = np.abs(np.concatenate(expected) - samples.logprobs_N)
    return float(error_N[samples.response_mask_N].max())


def send(transport, model, version):
    """Sends a whole model as one bucket; returns what an engine receives."""
    payload, _ = transport.send(list(model.named_parameters()), version)
    return payload


def response_lists(samples):
    return [samples.response(b).tolist() for b in range(samples.size)]


def response_versions(samples):
    return samples.versions_N[samples.response_mask_N].tolist()


def exercise_generate(actor, model, decoding, end_token):
    seeds = list(range(6))
    samples = actor.generate(PROMPTS, [0, 1, 2], decoding, end_token, n=2, seeds=seeds)
    alone = actor.generate(PROMPTS[1:2], [1], decoding, end_token, n=2, seeds=seeds[2:4])
    # More tokens than vLLM takes in one step (4,096): no seeded prompt may be processed in two
    # parts.
    long_prompts = [list(range(8, 58))] * 128
    crowd = actor.generate(
        long_prompts, range(128), Decoding(max_tokens=4), end_token, seeds=list(range(128))
    )
    return {
        "responses": response_lists(samples),
        "responses alone": response_lists(alone),
        "sequences": [samples.sequence(b).tolist() for b in range(samples.size)],
        "prompt ids": samples.prompt_ids_B.tolist(),
        "versions": set(response_versions(samples)),
        "ended": samples.ended_B.tolist(),
        "error": max_sampling_error(model, samples),
        "crowd": crowd.size,
    }


def exercise_groups(actor, model, transport, decoding, end_token):
    """Groups in flight while other groups and new weights arrive."""
    results = {}
    short = []
    for i, prompt in enumerate(PROMPTS[:2]):
        short.append(PromptGroup(10 + i, i, prompt, [2 * i, 2 * i + 1]))
    status, samples = actor.run_groups(short, decoding, end_token, max_groups=2, min_version=0)
    results["first"] = (status, samples.prompt_ids_B.tolist(), response_lists(samples))

    long = Decoding(max_tokens=40)
    new = [PromptGroup(20, 7, [10, 11], [2]), PromptGroup(21, 8, [12, 13], [3])]
    results["nothing yet"] = actor.run_groups(new, long, end_token, 2, min_version=0, seconds=0)
    # In the middle of their responses when the other requests and the new weights arrive.
    for _ in range(5):
        actor.engine.step()
    beside = actor.generate(PROMPTS[:1], [0], Decoding(max_tokens=2), end_token, seeds=[0])
    results["generated beside"] = beside.response(0).tolist()

    actor.update_weights(send(transport, model, 6), 6)
    new = [PromptGroup(22, 9, [10, 11], [4])]
    status, samples = actor.run_groups(new, long, end_token, max_groups=1, min_version=0)
    error = max_sampling_error(model, samples)
    results["over an update"] = (status, response_versions(samples), error)

    actor.update_weights(send(transport, model, 7), 7, min_version=6)
    status, samples = actor.run_groups([], long, end_token, max_groups=9, min_version=0)
    results["dropped"] = (status, response_versions(samples))
    results["unfinished requests"] = actor.engine.count_requests()

    # Finished, but too old by the time it would be returned.
    new = [PromptGroup(30, 1, PROMPTS[0], [1])]
    actor.run_groups(new, decoding, end_token, max_groups=0, min_version=0, seconds=0)
    actor.update_weights(send(transport, model, 8), 8)
    results["finished too late"] = actor.run_groups([], decoding, end_token, 1, min_version=8)
    new = [PromptGroup(31, 1, PROMPTS[0], [1])]
    actor.run_groups(new, decoding, end_token, max_groups=1, min_version=0, seconds=0)
    actor.cancel_groups()
    results["cancelled"] = actor.run_groups([], decoding, end_token, max_groups=1, min_version=0)
    results["left"] = (actor.engine.count_requests(), len(actor._groups))
    payload = send(transport, model, LOADED_VERSION)
    actor.update_weights(payload, LOADED_VERSION)
    return results


def exercise_updates(actor, model, transport, sequences, end_token):
    """Changes one kind of weight after the other: (largest change of a log-probability, error
    against the model)."""
    version, changes = LOADED_VERSION, {}
    before = np.concatenate(actor.prompt_logprobs(sequences))
    kinds = list(KINDS)
    if not model.config.tie_word_embeddings:
        kinds.append("lm_head")
    for kind in kinds:
        parameter = next(p for name, p in model.named_parameters() if kind in name)
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 0.3 * parameter.std().clamp(min=0.3))
        version += 1
        actor.update_weights(send(transport, model, version), version)
        after = np.concatenate(actor.prompt_logprobs(sequences))
        error = np.abs(after - plain_logprobs(model, sequences))
        changes[kind] = (float(np.abs(after - before).max()), float(error.mean()))
        before = after
    samples = actor.generate(PROMPTS, [0, 1, 2], Decoding(max_tokens=12), end_token)
    versions = set(response_versions(samples))
    return {"changes": changes, "versions": versions, "last version": version}


def exercise_transports(actor, model, sequences, folder):
    """An update by each transport in several buckets: (largest change of a log-probability, error against
    the model)."""
    changes = {}
    for kind in ("file", "object_store", "broadcast"):
        before = np.concatenate(actor.prompt_logprobs(sequences))
        perturb(model, seed=actor.version)
        update(actor, model, kind, actor.version + 1, folder)
        after = np.concatenate(actor.prompt_logprobs(sequences))
        error = np.abs(after - plain_logprobs(model, sequences))
        changes[kind] = (float(np.abs(after - before).max()), float(error.mean()))
    return changes


def exercise_refusals(actor, model, transport, sequences, folder):
    version = actor.version
    before = np.concatenate(actor.prompt_logprobs(sequences))
    payload = send(transport, model, version + 1)
    truncated = folder / "truncated.safetensors"
    shutil.copy(payload.path, truncated)
    with open(truncated, "r+b") as file:
        file.truncate(truncated.stat().st_size - 100)
    refused = {}
    for name, changed in (
        ("truncated", {"path": str(truncated)}),
        ("missing", {"path": "/nowhere"}),
        ("other content", {"digest": "0"}),
    ):
        try:
            actor.update_weights(replace(payload, **changed), version + 1)
        except (UserError, SystemExit) as error:
            refused[name] = (type(error).__name__, str(error))
    after = np.concatenate(actor.prompt_logprobs(sequences))
    try:
        actor.generate([[5] * 60], [0], Decoding(max_tokens=12), end_token=0)
    except UserError as error:
        refused["too long"] = str(error)
    return {
        "refused": refused,
        "change": float(np.abs(after - before).max()),
        "version kept": actor.version == version,
    }


def error_of(call, *arguments):
    """The message of the RuntimeError that a call raises; None if it raises none."""
    try:
        call(*arguments)
    except RuntimeError as error:
        return str(error)
    return None


def exercise_sleep(actor, model, transport, sequences):
    """The states of an engine that shares its GPUs: which calls it refuses in each."""
    before = np.concatenate(actor.prompt_logprobs(sequences))
    actor.engine.add_responses(PROMPTS[0], [1], Decoding(max_tokens=2), 0)
    seen = {"at work": error_of(actor.sleep, 1)}
    while actor.engine.llm.llm_engine.has_unfinished_requests():
        actor.engine.step()
    actor.engine.take(list(actor.engine._outputs))
    for level in (1, 1):  # a second sleep is none
        actor.sleep(level)
    seen["asleep"] = error_of(actor.prompt_logprobs, sequences)
    seen["vllm sleeps"] = actor.engine.llm.llm_engine.is_sleeping()
    actor.wake(["weights"])
    seen["without cache"] = error_of(actor.prompt_logprobs, sequences)
    actor.wake(["kv_cache"])
    actor.wake(["kv_cache"])
    seen["vllm is awake"] = not actor.engine.llm.llm_engine.is_sleeping()
    after = np.concatenate(actor.prompt_logprobs(sequences))
    seen["level 1"] = np.array_equal(before, after)
    actor.sleep(2)
    actor.wake(["weights", "kv_cache"])
    seen["dropped"] = error_of(actor.prompt_logprobs, sequences)
    version = actor.version + 1
    actor.sleep(1)
    actor.wake(["weights"])
    actor.update_weights(send(transport, model, version), version)
    actor.wake(["kv_cache"])
    after = np.concatenate(actor.prompt_logprobs(sequences))
    seen["level 2, updated"] = float(np.abs(after - plain_logprobs(model, sequences)).mean())
    return seen


def exercise_engine(folder, queue):
    from actors.rollout import RolloutActor

    config = RolloutConfig(
        dtype="float32",
        kv_cache_gib=0.05,
        max_sequences=128,
        max_model_len=64,
        threads=2,
        vllm={"max_num_batched_tokens": 1234},
    )
    actor = RolloutActor("rollout-0", str(folder / "model"), config, seed=0, version=LOADED_VERSION)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    decoding, end_token = Decoding(max_tokens=12), model.config.eos_token_id
    # The end of a turn, and for our own tokenizer the end of a text.
    stop_tokens = model.generation_config.eos_token_id
    if not isinstance(stop_tokens, list):
        stop_tokens = [stop_tokens]
    results = {"end token": end_token, "stop tokens": stop_tokens}
    results["generate"] = exercise_generate(actor, model, decoding, end_token)
    sequences = results["generate"]["sequences"]
    groups = exercise_groups(actor, model, FileTransport(folder / "groups"), decoding, end_token)
    results["groups"] = groups
    transport = FileTransport(folder / "weights")
    results["updates"] = exercise_updates(actor, model, transport, sequences, end_token)
    results["transports"] = exercise_transports(actor, model, sequences, folder)
    results["refusals"] = exercise_refusals(actor, model, transport, sequences, folder)
    results["sleep"] = exercise_sleep(actor, model, transport, sequences)
    scheduler = actor.engine.llm.llm_engine.vllm_config.scheduler_config
    results["batched tokens"] = scheduler.max_num_batched_tokens
    queue.put(results)


@pytest.fixture(scope="module", params=["tied", "untied"])
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = train_tokenizer(TEXTS, MODEL.vocab_size)
    model = build_policy(MODEL, tokenizer, seed=1) if request.param == "tied" else untied_model()
    model.save_pretrained(folder / "model")
    return in_own_process(exercise_engine, folder)


def test_sampled_logprobs_are_the_models(results):
    generated = results["generate"]
    assert generated["error"] < 1e-5
    assert generated["prompt ids"] == [0, 0, 1, 1, 2, 2]
    assert generated["versions"] == {LOADED_VERSION}


def test_responses_depend_on_their_seeds_alone(results):
    generated = results["generate"]
    assert generated["responses"][2:4] == generated["responses alone"]
    assert generated["crowd"] == 128


def test_response_ends_by_a_stop_token_or_the_length_limit(results):
    generated = results["generate"]
    for response, ended in zip(generated["responses"], generated["ended"], strict=True):
        assert ended == (response[-1] == results["end token"])
        assert len(response) == 12 or response[-1] in results["stop tokens"]


def test_groups_give_the_same_samples_as_generate(results):
    status, prompt_ids, responses = results["groups"]["first"]
    assert status == GroupStatus(finished=[10, 11])
    assert prompt_ids == [0, 0, 1, 1]
    assert responses == results["generate"]["responses"][:4]


def test_groups_in_flight_continue_under_new_weights(results):
    groups = results["groups"]
    assert groups["nothing yet"] == (GroupStatus(), None)
    assert groups["generated beside"]
    status, versions, error = groups["over an update"]
    assert status == GroupStatus(finished=[20])
    assert sorted(set(versions)) == [5, 6]
    assert versions == sorted(versions)
    assert error < 1e-5


def test_groups_begun_before_min_version_are_dropped(results):
    groups = results["groups"]
    status, versions = groups["dropped"]
    assert status == GroupStatus(finished=[22], dropped=[21])
    assert set(versions) <= {6, 7}
    assert groups["unfinished requests"] == 0
    assert groups["finished too late"] == (GroupStatus(dropped=[30]), None)


def test_cancelled_groups_are_not_reported(results):
    assert results["groups"]["cancelled"] == (GroupStatus(), None)
    assert results["groups"]["left"] == (0, 0)


def test_an_update_changes_every_kind_of_weight(results):
    updates = results["updates"]
    for kind, (change, error) in updates["changes"].items():
        assert change > 1e-3, f"{kind} did not reach the engine"
        assert error < 1e-5, f"{kind} reached the engine wrong"
    assert updates["versions"] == {updates["last version"]}


@pytest.mark.parametrize("kind", ["file", "object_store", "broadcast"])
def test_each_transport_brings_the_weights_in_several_buckets(results, kind):
    change_of_logprob, error = results["transports"][kind]
    assert change_of_logprob > 1e-2
    assert error < 1e-5


def test_damaged_weights_end_the_process(results):
    refused = results["refusals"]["refused"]
    for name, reason in (
        ("truncated", "the content is not what was sent"),
        ("other content", "the content is not what was sent"),
    ):
        kind, message = refused[name]
        assert kind == "SystemExit"
        assert reason in message


def test_missing_weights_are_a_user_error(results):
    kind, message = results["refusals"]["refused"]["missing"]
    assert kind == "UserError"
    assert "no such file" in message
    assert "learners.weights_dir" in message


def test_refused_weights_leave_the_engine_unchanged(results):
    assert results["refusals"]["change"] == 0
    assert results["refusals"]["version kept"]


def test_a_prompt_over_the_context_is_refused(results):
    assert "more than the engine's 64" in results["refusals"]["refused"]["too long"]


def test_argument_of_the_section_vllm_reaches_the_engine(results):
    assert results["batched tokens"] == 1234


def test_an_engine_works_only_when_it_is_awake_and_has_its_weights(results):
    seen = results["sleep"]
    assert seen["at work"] == "the engine cannot sleep: it works on 1 requests"
    assert seen["asleep"] == "the engine is asleep (kv_cache, weights); wake it first"
    assert seen["without cache"] == "the engine is asleep (kv_cache); wake it first"
    assert seen["dropped"] == "the engine has dropped its weights; it needs an update first"
    assert seen["vllm sleeps"]
    assert seen["vllm is awake"]
    assert seen["level 1"]
    assert seen["level 2, updated"] < 1e-5
