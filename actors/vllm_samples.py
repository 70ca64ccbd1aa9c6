"""Turns finished requests of vLLM into `Samples`.

`actors.rollout` calls it on what an engine sampled for training, `serve.canary` on what a replica
answered. It reads only attributes of vLLM's `RequestOutput`, so it needs no import of vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from learners.data.samples import Samples, offsets_of


def samples_from_outputs(
    outputs: Sequence[Any], prompt_ids_B: np.ndarray, end_token: int, loaded_version: int | None
) -> Samples:
    """The first completion of each of B outputs, in order.

    The requests must have asked for `logprobs=0` and `flat_logprobs=True`. `prompt_ids_B` (B,) says
    which prompt each output answers. A response has ended if its last token is `end_token`.
    `loaded_version` is the weight version that the engine loaded at its start. With None the
    engine's versions are names instead of numbers (as in serving), and every response token gets
    version 0.
    """
    tokens: list[Any] = []
    logprobs: list[Any] = []
    versions: list[np.ndarray] = []
    prompt_lengths, lengths, ended = [], [], []
    for output in outputs:
        completion = output.outputs[0]
        prompt, response = output.prompt_token_ids, completion.token_ids
        tokens += [prompt, response]
        logprobs += [np.zeros(len(prompt)), completion.logprobs.logprobs]
        versions.append(np.full(len(prompt), -1))
        versions += response_versions(completion, loaded_version)
        prompt_lengths.append(len(prompt))
        lengths.append(len(prompt) + len(response))
        ended.append(len(response) > 0 and response[-1] == end_token)
    return Samples(
        tokens_N=np.concatenate(tokens).astype(np.int32),
        offsets=offsets_of(lengths),
        prompt_lengths_B=np.array(prompt_lengths, dtype=np.int32),
        logprobs_N=np.concatenate(logprobs).astype(np.float32),
        versions_N=np.concatenate(versions).astype(np.int32),
        prompt_ids_B=prompt_ids_B,
        ended_B=np.array(ended, dtype=bool),
    )


def response_versions(completion: Any, loaded_version: int | None) -> list[np.ndarray]:
    """The weight version of each response token, one array for each span of tokens of one
    version."""
    if loaded_version is None:
        return [np.zeros(len(completion.token_ids))]
    versions = []
    for span in completion.weight_versions or []:
        version = loaded_version
        # vLLM calls the weights that it loaded at its start "default".
        if span.version != "default":
            version = int(span.version)
        versions.append(np.full(span.end - span.start, version))
    return versions
