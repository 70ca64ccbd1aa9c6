"""Arguments of vLLM that the sections rollout.vllm and serve.vllm pass on.

`python -m actors.vllm_arguments` checks one of them by vLLM's own command line (`common.pass_through`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from common.pass_through import answer, check_known, unknown

BY_THE_PROGRAM = "the program sets it"
ENGINES_SIDE_BY_SIDE = "engines run side by side as actors or replicas (rollout.actors, serve.replicas)"


def _of_every_engine(section: str) -> dict[str, str]:
    """Arguments that no section passes on, with what to do instead."""
    return {
        "model": "the engine has the policy",
        "dtype": f"set {section}.dtype",
        "max_model_len": f"set {section}.max_model_len",
        "max_num_seqs": f"set {section}.max_sequences",
        "tensor_parallel_size": f"set {section}.tensor_parallel",
        "kv_cache_memory_bytes": f"set {section}.kv_cache_gib",
        "enforce_eager": f"set {section}.enforce_eager",
        "pipeline_parallel_size": ENGINES_SIDE_BY_SIDE,
        "data_parallel_size": ENGINES_SIDE_BY_SIDE,
        "weight_transfer_config": BY_THE_PROGRAM,
        "disable_log_stats": BY_THE_PROGRAM,
        "worker_cls": BY_THE_PROGRAM,
        "worker_extension_cls": BY_THE_PROGRAM,
    }


CHUNKED_PREFILL = "it is off on CPU, where a prompt in two parts resets the generator of a seeded request"

ROLLOUT_RESERVED = _of_every_engine("rollout") | {
    "dtype": "set rollout.dtype or ppo.dtype",
    "pipeline_parallel_size": "set rollout.pipeline_parallel",
    "distributed_executor_backend": "set rollout.executor",
    "enable_sleep_mode": "set cluster.layout",
    "seed": "set seed; every sample has a seed of its own",
    "gpu_memory_utilization": "set rollout.gpu_memory_utilization",
    "logprobs_mode": "the run needs the log-probabilities of the distribution that was sampled from",
    "skip_tokenizer_init": BY_THE_PROGRAM,
    "generation_config": "set ppo.temperature and the like; every request has its own settings",
    "override_generation_config": "set ppo.temperature and the like; every request has its own settings",
}

OF_THE_PROXY = "requests pass Ray Serve's proxy and the gateway first; see section serve"

SERVE_RESERVED = _of_every_engine("serve") | {
    "served_model_name": "set serve.name",
    "host": "set serve.host",
    "port": "set serve.port",
    "api_key": "set serve.api_keys",
    "generation_config": "set serve.decoding",
    "override_generation_config": "set serve.decoding",
    "max_num_queued_reqs": "set serve.max_ongoing",
    "allowed_origins": OF_THE_PROXY,
    "allow_credentials": OF_THE_PROXY,
    "allowed_methods": OF_THE_PROXY,
    "allowed_headers": OF_THE_PROXY,
    "root_path": OF_THE_PROXY,
    "middleware": OF_THE_PROXY,
    "uds": OF_THE_PROXY,
    "ssl_keyfile": OF_THE_PROXY,
    "ssl_certfile": OF_THE_PROXY,
    "ssl_ca_certs": OF_THE_PROXY,
    "headless": BY_THE_PROGRAM,
    "api_server_count": BY_THE_PROGRAM,
    "config": "write the arguments into the section itself",
    "grpc": "the endpoint speaks HTTP",
}


def check_arguments(key: str, values: Mapping[str, Any]) -> None:
    """Raises UserError for an argument of the section `key` (rollout.vllm or serve.vllm) that vLLM does
    not know, or whose value it does not take. Takes seconds where there are any."""
    if values:
        question = {"values": dict(values), "server": key.startswith("serve.")}
        check_known(key, "actors.vllm_arguments", question)


def command_line(values: Mapping[str, Any]) -> list[str]:
    """Arguments as vLLM's command line has them; a null keeps vLLM's default."""
    command = []
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            command += [f"--{option}", *[_text(item) for item in value]]
        elif value is not None:
            command += [f"--{option}", _text(value)]
    return command


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _problems(values: Mapping[str, Any], server: bool) -> list[str]:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(exit_on_error=False))
    parser.error = _raise  # type: ignore[assignment]
    known = {action.dest for action in parser._actions}
    if not server:
        known &= {field.name for field in dataclasses.fields(EngineArgs)}
    actions = {action.dest: action for action in parser._actions}
    problems = []
    for name, value in values.items():
        if name not in known:
            problems.append(unknown(name, known, "vLLM"))
            continue
        registered = _registered(name)
        if registered and value is not None and value not in registered:
            problems.append(f"{name}={value}: expected one of {', '.join(sorted(registered))}")
            continue
        if actions[name].nargs == 0 and not isinstance(value, bool):
            problems.append(f"{name}={value}: expected true or false")
            continue
        try:
            parser.parse_args(command_line({name: value}))
        except (argparse.ArgumentError, ValueError, TypeError) as error:
            problems.append(f"{name}={value}: vLLM does not take this value ({error})")
    if server and not problems:
        try:
            validate_parsed_serve_args(parser.parse_args(command_line(values)))
        except (ValueError, TypeError, KeyError) as error:
            message = re.sub(r"--([a-z-]+)", _as_key, str(error).removeprefix("Error: "))
            problems.append(f"{next(iter(values))}: {message}")
    return problems


def _as_key(option: re.Match[str]) -> str:
    return f"serve.vllm.{option[1].replace('-', '_')}"


def _registered(name: str) -> list[str]:
    """The names that vLLM looks up only when an engine starts; empty for other arguments."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if name == "tool_call_parser":
        return list(ToolParserManager.list_registered())
    if name == "reasoning_parser":
        return list(ReasoningParserManager.list_registered())
    return list(QUANTIZATION_METHODS) if name == "quantization" else []


def _raise(message: str) -> None:
    """In place of argparse's own, which ends the process."""
    raise ValueError(message)


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answer(_problems(asked["values"], asked["server"]))
