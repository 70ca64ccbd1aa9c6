"""What rollout.vllm and serve.vllm accept: all of vLLM's arguments, but for those that have a key here."""

from pathlib import Path

import pytest

from actors.config import RolloutConfig
from actors.vllm_arguments import _problems, check_arguments, command_line
from cluster.config_loader import load_config
from common.errors import UserError
from serve.config import ServeConfig
from serve.engine import engine_arguments


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.vllm.dtype=float32",
            "rollout.vllm: dtype cannot be passed on: set rollout.dtype or ppo.dtype",
        ),
        ("rollout.vllm={max_model_len: 64}", "max_model_len cannot be passed on: set rollout.max_model_len"),
        ("rollout.vllm.tensor_parallel_size=2", "set rollout.tensor_parallel"),
        ("rollout.vllm.logprobs_mode=raw_logits", "the run needs the log-probabilities of the distribution"),
        ("rollout.vllm.enable_chunked_prefill=true", "it is off on CPU"),
        (
            "serve.vllm.max_num_seqs=8",
            "serve.vllm: max_num_seqs cannot be passed on: set serve.max_sequences",
        ),
        ("serve.vllm.api_key=x", "set serve.api_keys"),
        ("rollout.vllm=fast", "rollout.vllm: Input should be a valid dictionary"),
    ],
)
def test_arguments_with_a_key_here_are_refused_by_it(override, message):
    with pytest.raises(UserError) as error:
        load_config(None, [override])
    assert message in str(error.value)


def test_gpus_may_chunk_prompts():
    assert load_config(None, ["rollout.gpus=1", "rollout.vllm.enable_chunked_prefill=true"]).rollout.vllm


def test_unknown_argument_is_named_with_a_near_one():
    check_arguments("rollout.vllm", {})  # starts no process
    with pytest.raises(UserError) as error:
        check_arguments("rollout.vllm", {"enable_prefix_cache": False})
    assert str(error.value) == (
        "rollout.vllm.enable_prefix_cache: vLLM has no such argument; did you mean enable_prefix_caching?"
    )


def test_values_are_checked_by_vllm():
    """In this process, since each one of its own imports vLLM for seconds."""
    speculation = {"method": "ngram", "num_speculative_tokens": 2}
    good = {"max_num_batched_tokens": 512, "enable_prefix_caching": False, "speculative_config": speculation}
    assert _problems(good, server=False) == []
    bad = {
        "max_num_batched_tokens": "abc",
        "enable_prefix_caching": "maybe",
        "quantization": "xyz",
        "tool_call_parser": "hermes",  # of the server alone
    }
    found = _problems(bad, server=False)
    assert [problem.partition(":")[0].partition("=")[0] for problem in found] == list(bad)
    assert _problems({"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}, server=True) == []
    assert _problems({"enable_auto_tool_choice": True}, server=True) == [
        "enable_auto_tool_choice: serve.vllm.enable_auto_tool_choice requires serve.vllm.tool_call_parser"
    ]
    assert "expected one of" in _problems({"tool_call_parser": "hermez"}, server=True)[0]


def test_command_line():
    values = {"a_b": True, "c": False, "d": None, "e": {"f": 1}, "g": [1, 2], "h": 0.5}
    assert command_line(values) == ["--a-b", "--no-c", "--e", '{"f": 1}', "--g", "1", "2", "--h", "0.5"]


@pytest.mark.parametrize(
    ("settings", "eager"),
    [
        ({}, True),
        ({"gpus": 1}, False),
        ({"gpus": 1, "enforce_eager": True}, True),
        ({"enforce_eager": False}, False),
    ],
)
def test_engines_are_compiled_on_gpus_unless_the_config_says_otherwise(settings, eager):
    assert RolloutConfig(**settings).is_eager("cuda" if "gpus" in settings else "cpu") == eager
    arguments = engine_arguments(ServeConfig(**settings, dtype="float32"), Path("model"), "hero")
    assert ("--enforce-eager" in arguments) == eager
