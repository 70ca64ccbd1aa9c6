"""Log-probabilities and entropy of target tokens: pure functions that models and objectives share.

The logits of a vocabulary of 150,000 are 600 kB a token in float32, and a backward pass needs as much
again. So tokens go through the head in chunks, and a backward pass runs the head of a chunk again in
place of keeping its logits: the memory of one chunk, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ENTRIES = 2**26
"""Logits of one chunk, 256 MiB in float32. Each chunk adds to the gradient of the head's matrix, so
smaller ones cost time and save no memory (`bench/logprobs.py`). Vocabularies up to 16,384 run a
micro-batch of 4,096 tokens in one chunk, and so their head only once."""

Head = Callable[[Tensor], Tensor]
"""(N, D) hidden states -> (N, V) logits."""


def num_chunks(num_tokens: int, vocabulary: int) -> int:
    """The fewest chunks of at most CHUNK_ENTRIES logits (or of one token)."""
    tokens_of_chunk = max(1, CHUNK_ENTRIES // vocabulary)
    return max(1, -(-num_tokens // tokens_of_chunk))


def chunked_logprobs(
    head: Head,
    hidden_ND: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    chunks: int = 1,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` of `head(hidden_ND)`, in this number of chunks (of about equal size, some empty
    if there are fewer tokens)."""
    if chunks == 1:
        return token_logprobs(head(hidden_ND), targets_N, temperature, with_entropy)
    logprobs, entropy = [], []
    pairs = zip(hidden_ND.tensor_split(chunks), targets_N.tensor_split(chunks), strict=True)
    for hidden_CD, targets_C in pairs:
        arguments = (head, hidden_CD, targets_C, temperature, with_entropy)
        if torch.is_grad_enabled():
            # Not the reentrant kind, with which DeepSpeed would reduce the head's gradient once a
            # chunk. There is no dropout whose random state would have to be kept.
            of_chunk = checkpoint(_chunk_logprobs, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            of_chunk = _chunk_logprobs(*arguments)
        logprobs.append(of_chunk[0])
        entropy.append(of_chunk[1])
    return torch.cat(logprobs), torch.cat(entropy)


def _chunk_logprobs(
    head: Head, hidden_CD: Tensor, targets_C: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    return token_logprobs(head(hidden_CD), targets_C, temperature, with_entropy)


def token_logprobs(
    logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """(logprobs_N, entropy_N) in nats of the targets under softmax(logits / temperature), in
    float32.

    The entropy carries no gradient and is empty without `with_entropy`.
    """
    # float32, because bfloat16 resolves a log-probability of -10 to 0.06 only.
    logits_NV = logits_NV.float()
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    log_p_NV = F.log_softmax(logits_NV, dim=-1)
    logprobs_N = log_p_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    if not with_entropy:
        return logprobs_N, logprobs_N.new_empty(0)
    with torch.no_grad():
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    return logprobs_N, entropy_N
