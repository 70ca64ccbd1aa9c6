"""Whether a model does what the forward passes here take for granted, tried on a few tokens.

Architectures are many and differ in what they ignore: position ids, the order of tokens, a head that
is more than a matrix. A mistake would show only as a somewhat worse model, so every task and every
scoring actor checks its models when it starts, and refuses those that it would train or read wrongly.
The checks run where the model is, on its device and under ZeRO-3 in its shards (then all ranks make the
same calls), and take a few forward passes of six tokens. Weights that hold nan are no reason to refuse:
what they give is another's concern."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from common.errors import UserError
from learners.data.packing import pack
from learners.models import PolicyModule, ScalarModule, last_hidden, scalar_head
from learners.sequence_parallel import ATTENTION, sequence_group
from learners.sharded_parameters import is_sharded, whole

MASKED_ATTENTION = ("sdpa", "eager")
"""Implementations that take a mask, and compute all pairs of a row."""

TOLERANCE = 1e-4
"""Largest difference that counts as rounding, relative to the values, in float32: a packed batch sums
in another order (up to 1e-6), and models that really mix sequences differ by 5e-3 and more."""


def check_forward(module: PolicyModule | ScalarModule, packing: bool) -> None:
    """All checks of a policy or scalar model. Raises UserError that names the model's class."""
    model: PreTrainedModel = module.model
    check_sequence_slices(model)
    if isinstance(module, PolicyModule):
        check_logprobs(module)
    else:
        check_scalars(module)
    if packing:
        check_packing_isolation(model)


@torch.no_grad()
def check_sequence_slices(model: PreTrainedModel) -> None:
    """Raises UserError if ranks share rows and the model cannot be computed from slices of them: what mixes
    tokens elsewhere than in the attention, or has another mask than the causal one, needs whole rows."""
    group = sequence_group()
    if group is None:
        return
    key = f"learners.sequence_parallel={group.size}: {type(model).__name__}"
    attention, config = model.config._attn_implementation, model.config.get_text_config()
    if attention not in ATTENTION:
        raise UserError(
            f"{key} has the attention {attention}; set model.attention to {' or '.join(ATTENTION)}"
        )
    if attention == "sdpa" and has_windows(config):
        raise UserError(
            f"{key} has windows of attention, which sdpa cannot keep; set model.attention=flash_attention_2 "
            "or sequence_parallel=1"
        )
    tokens_BT = _tokens(model, [1, 2, 3, 4, 5, 6])
    expected = model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state
    try:
        hidden = last_hidden(model, tokens_BT, None)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{key} cannot take slices of a sequence ({reason}); set sequence_parallel=1"
        ) from error
    if _differ(model, hidden, expected):
        raise UserError(
            f"{key} computes something else from slices of a sequence than from all of it; set "
            "sequence_parallel=1"
        )


@torch.no_grad()
def check_logprobs(policy: PolicyModule) -> None:
    """Raises UserError unless the policy's log-probabilities are those of its class's own logits, and
    do not depend on later tokens."""
    model = policy.model
    tokens_BT = _tokens(model, [1, 2, 3, 4, 5, 6])
    mask_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    mask_BT[:, 0] = False
    logprobs_N, _ = policy(tokens_BT, mask_BT)
    expected_TV = model(tokens_BT, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    expected_N = expected_TV.gather(-1, tokens_BT[0, 1:, None]).squeeze(-1)
    name = type(model).__name__
    if _differ(model, logprobs_N, expected_N):
        raise UserError(
            f"{name}: log-probabilities computed here are not those of its own forward pass (they differ by "
            f"{float((logprobs_N - expected_N).abs().max()):.2g} nats), so it would be trained to another "
            "model than is saved; choose another architecture"
        )
    first_two = model(tokens_BT[:, :2], use_cache=False).logits[0, 0].float().log_softmax(-1)
    if _differ(model, first_two, expected_TV[0]):
        raise UserError(
            f"{name}: its log-probabilities depend on the tokens that come later; choose a model that reads "
            "from left to right"
        )


@torch.no_grad()
def check_scalars(scalar: ScalarModule) -> None:
    """Raises UserError unless the scalars at the last token, of a whole sequence and of its beginning,
    are what the model's class itself gives for it."""
    model = scalar.model
    padding = model.config.get_text_config().pad_token_id
    # The class reads its scalar at the last token that is not the pad token.
    tokens_BT = _tokens(model, [i for i in range(1, 8) if i != padding][:6])
    head, hidden_TD = scalar_head(model), last_hidden(model, tokens_BT, None)[0]
    scalars_T = head(hidden_TD)[:, 0]
    # A scalar may be near 0, where rounding of the terms of its sum is large beside it.
    with whole([head.weight]):
        terms = float((hidden_TD.abs() @ head.weight.abs().T).max())
    for length in (3, 6):
        expected = model(tokens_BT[:, :length], use_cache=False).logits[0]
        if _differ(model, scalars_T[length - 1], expected[0], terms):
            raise UserError(
                f"{type(model).__name__}: its scalar is not a linear head on the last token's hidden state, "
                "as rewards and values are read here; choose another architecture for the reward model"
            )


def check_packing_isolation(model: PreTrainedModel) -> None:
    """Raises UserError if a sequence in a packed row sees the one before it: some architectures
    ignore position ids."""
    if separates_packed(model):
        return
    # Rounding of bfloat16 can be as large as what leaks; mostly mixtures of experts come here.
    if model.dtype != torch.float32 and _separates_beyond_rounding(model):
        return
    raise UserError(
        f"{type(model).__name__}: this architecture does not separate sequences packed into "
        "one row; set learners.packing=false"
    )


@torch.no_grad()
def separates_packed(model: PreTrainedModel) -> bool:
    """Whether a sequence in a packed row is computed as if the one before it were not there. In
    bfloat16 false also where rounding alone differs."""
    after_one, after_other = _after_two_others(model, [0, 1, 0, 1])
    if model.dtype != torch.float32:
        return torch.equal(after_one, after_other)
    return not _differ(model, after_one, after_other)


@torch.no_grad()
def _separates_beyond_rounding(model: PreTrainedModel) -> bool:
    """As `separates_packed`, for a model in bfloat16."""
    if _fits_in_float32(model):
        with _in_float32(model):
            return separates_packed(model)
    packed = _after_two_others(model, [0, 1, 0, 1])
    # What it looks like when the second sequence does see the first.
    leaking = _after_two_others(model, [0, 1, 2, 3])
    return _is_far_below(_distance(*packed), _distance(*leaking))


def _after_two_others(model: PreTrainedModel, positions: list[int]) -> tuple[Tensor, Tensor]:
    """The states of a sequence of two tokens after two different ones in the same row."""
    positions_BT = torch.tensor([positions], device=model.device)
    after_one = last_hidden(model, _tokens(model, [1, 2, 3, 4]), positions_BT)[:, 2:]
    after_other = last_hidden(model, _tokens(model, [5, 6, 3, 4]), positions_BT)[:, 2:]
    return after_one, after_other


def attention_span(model: PreTrainedModel) -> float:
    """Tokens of a packed row whose attention costs as much as the rest of the model. Of a transformer of
    width w, a layer has about 12 w² parameters, 24 w² FLOPs a token, and its attention over L tokens takes
    4 L w more (Kaplan et al. 2020, arXiv:2001.08361, table 1), also for pairs that a mask then removes:
    as much at L = 6 w. Flash kernels compute no such pairs."""
    if model.config._attn_implementation not in MASKED_ATTENTION:
        return math.inf
    return 6.0 * int(model.config.get_text_config().hidden_size)


@torch.no_grad()
def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether responses that share their prompt in a row get the output that they get alone.

    Not with flash kernels, which take no mask, with layers whose mask is not the causal one (sliding
    windows, chunks), or with architectures that ignore a mask."""
    config = model.config.get_text_config()
    if model.config._attn_implementation not in MASKED_ATTENTION:
        return False
    if has_windows(config):
        return False
    if model.dtype == torch.float32:
        return _shares(model)
    if _fits_in_float32(model):
        with _in_float32(model):
            return _shares(model)
    return _shares(model, by_contrast=True)


def has_windows(config: PreTrainedConfig) -> bool:
    """Whether a token attends to the nearest tokens only, in some layers."""
    return bool(getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None))


def _shares(model: PreTrainedModel, by_contrast: bool = False) -> bool:
    """Whether the states are those of rows that share nothing, up to rounding; `by_contrast` up to far
    less than what it makes to ignore the mask."""
    sequences = [np.array([1, 2, 3, 4, 5]), np.array([1, 2, 6, 7])]
    no_targets = [np.zeros(len(sequence), dtype=bool) for sequence in sequences]
    plain = pack(sequences, no_targets, 0, math.inf).to(model.device)
    shared = pack(sequences, no_targets, 0, math.inf, prompt_lengths=[2, 2]).to(model.device)
    assert shared.attention_RTT is not None
    # Every token sees all before it, also those of the other response.
    ignored_RTT = torch.ones_like(shared.attention_RTT).tril()
    layouts = [(plain, plain.attention_RTT), (shared, shared.attention_RTT)]
    if by_contrast:
        layouts.append((shared, ignored_RTT))
    outputs = []
    for batch, attention_RTT in layouts:
        try:
            hidden_BTD = last_hidden(model, batch.tokens_RT, batch.positions_RT, attention_RTT)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False  # this architecture takes masks of another shape
        outputs.append(hidden_BTD.flatten(0, 1)[batch.last_S])
    alone, in_shared, leaking = (*outputs, outputs[0])[:3]
    if by_contrast:
        return _is_far_below(_distance(in_shared, alone), _distance(leaking, alone))
    return not _differ(model, in_shared, alone)


def _fits_in_float32(model: PreTrainedModel) -> bool:
    """Whether the model can be computed in float32 for a moment: not in shards, and not in a GPU's memory,
    of which there may be too little."""
    return model.device.type == "cpu" and not is_sharded(model.parameters())


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Inside it, the parameters are float32; afterwards they are bit for bit what they were."""
    # The tensors themselves come back: they are views of DeepSpeed's flat buffers.
    originals = [(parameter, parameter.data) for parameter in model.parameters()]
    for parameter, original in originals:
        parameter.data = original.float()
    yield
    for parameter, original in originals:
        parameter.data = original


def _tokens(model: PreTrainedModel, ids: list[int]) -> Tensor:
    return torch.tensor([ids], device=model.device)


def _differ(model: PreTrainedModel, a: Tensor, b: Tensor, size: float | None = None) -> bool:
    """Whether two results of the model differ by more than rounding of numbers of this size; without
    it, that of the results."""
    # bfloat16 rounds to 0.8% of a value, over and over.
    tolerance = max(TOLERANCE, 8 * torch.finfo(model.dtype).eps)
    if size is None:
        size = 1e-3 + float(b.abs().max())
    return bool((a - b).abs().max() > tolerance * size)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _is_far_below(rounding: float, leak: float) -> bool:
    """Whether a distance is rounding beside what a leak makes. True for nan, as everywhere here."""
    return not rounding * 4 >= leak
