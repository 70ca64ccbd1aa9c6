"""Builds, loads and runs the two kinds of model: causal language models and scalar models
(reward, critic).

Both are plain transformers classes saved as plain Hugging Face folders. Sequences are padded on
the right and attention is causal, so real tokens never see padding and no attention mask is
needed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.distributed import DistributedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from common.errors import UserError
from common.random_streams import Stream, derived_seed
from learners.config import ModelConfig
from learners.data.tokenizer import document_separator, end_token
from learners.logprobs import chunked_logprobs, num_chunks
from learners.lora import add_adapters
from learners.model_paths import resolve_model_path
from learners.own_head import own_logits
from learners.sequence_parallel import gather_rows, join_shares, own_hidden, own_share, sequence_group
from learners.sharded_parameters import is_sharded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_policy(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Qwen3 decoder with random weights, float32, whose generation config stops at the
    tokenizer's end token."""
    torch.manual_seed(derived_seed(seed, Stream.POLICY_INIT))
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=3 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.width // config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=config.tie_embeddings,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=end_token(tokenizer),
            dtype="float32",
        )
    )
    # Generation ends at the end of a turn, and at the separator that pretraining put after
    # documents.
    stops = sorted({end_token(tokenizer), document_separator(tokenizer)})
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    return model


def load_policy(
    path: str | Path, dtype: str = "float32", attention: str | None = None, is_cut: bool = False
) -> PreTrainedModel:
    """A causal language model from a folder or hub name; `attention` is the name of an
    implementation in transformers. With `is_cut` every process of the default group loads its part of
    each layer (tensor parallelism); raises UserError for a model that cannot be cut so."""
    return _from_pretrained(AutoModelForCausalLM, path, dtype, attention, is_cut)


def _from_pretrained(
    auto_class: Any, path: str | Path, dtype: str, attention: str | None, is_cut: bool
) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "attn_implementation": attention}
    if not is_cut:
        return auto_class.from_pretrained(resolve_model_path(path), **options)
    try:
        cut = DistributedConfig(tp_plan="auto", tp_size=dist.get_world_size())
        model: PreTrainedModel = auto_class.from_pretrained(
            resolve_model_path(path), distributed_config=cut, **options
        )
    except (ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: cannot be cut over {dist.get_world_size()} devices ({reason}); choose another "
            "tensor_parallel"
        ) from error
    return model


def read_config(path: str | Path) -> PreTrainedConfig:
    """The config of a folder or hub name."""
    return AutoConfig.from_pretrained(resolve_model_path(path))


def load_scalar(
    path: str | Path, dtype: str = "float32", attention: str | None = None, is_cut: bool = False
) -> PreTrainedModel:
    """A model with one output per position from a sequence-classification folder; `is_cut` as for
    `load_policy`."""
    model = _from_pretrained(AutoModelForSequenceClassification, path, dtype, attention, is_cut)
    if model.config.num_labels != 1:
        raise UserError(f"{path}: a reward model has one output, this one has {model.config.num_labels}")
    return model


def scalar_from_policy(
    path: str | Path, seed: int, dtype: str = "float32", attention: str | None = None
) -> PreTrainedModel:
    """The policy's backbone with a new scalar head, drawn from N(0, 1 / (width + 1)) (Stiennon et
    al. 2020)."""
    torch.manual_seed(derived_seed(seed, Stream.SCALAR_HEAD_INIT))
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_model_path(path), num_labels=1, dtype=DTYPES[dtype], attn_implementation=attention
    )
    weight = scalar_head(model).weight
    nn.init.normal_(weight, std=(weight.shape[1] + 1) ** -0.5)
    return model


def with_adapters(model: PreTrainedModel, config: ModelConfig, seed: int) -> PreTrainedModel:
    """The model with the config's adapters, drawn by the seed."""
    if config.lora:
        head: nn.Linear | None = None
        if model.get_output_embeddings() is None:
            head = scalar_head(model)
        # Policy and critic have layers of the same shapes; the counter gives them different
        # adapters.
        torch.manual_seed(derived_seed(seed, Stream.LORA_INIT, int(head is not None)))
        add_adapters(model, config.lora, head)
    return model


def with_checkpointing(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """The model with gradient checkpointing, if the config has it."""
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # Models stay in evaluation mode, without dropout, but these layers checkpoint only in
        # training mode. The flag is set on them alone, and not on the modules inside.
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True
    return model


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """The last linear layer of a sequence-classification model (`score` in nearly all of
    transformers)."""
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return head
    raise UserError(
        f"{type(model).__name__}: no linear head named score or classifier; use another reward model"
    )


def last_hidden(
    model: PreTrainedModel,
    tokens_BT: Tensor,
    positions_BT: Tensor | None,
    attention_BTT: Tensor | None = None,
) -> Tensor:
    """(B, T, D): the output of the last layer. `attention_BTT` (bool) says which tokens each token
    attends to; None: those before it.

    Without mask and cache, transformers lets attention end where the position ids of a row start
    again; flash kernels do so only in a batch of one row. Where ranks share rows
    (`learners.sequence_parallel`) this is a collective of theirs, after which each does its share of the
    work.
    """
    hidden_BLD = _own_hidden(model, tokens_BT, positions_BT, attention_BTT)
    return gather_rows(hidden_BLD, tokens_BT.shape, is_divided=True)


def _own_hidden(
    model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor | None, attention_BTT: Tensor | None
) -> Tensor:
    """`last_hidden` of the slice of the rows that this rank computes, before the slices are gathered."""
    group = sequence_group()
    if group is not None:
        return own_hidden(model, group, tokens_BT, positions_BT, attention_BTT)
    if attention_BTT is not None:
        output = model.base_model(
            input_ids=tokens_BT,
            position_ids=positions_BT,
            attention_mask=_attention_bias(model, attention_BTT),
            use_cache=False,
        )
        return output.last_hidden_state
    if positions_BT is not None and "flash" in model.config._attn_implementation:
        tokens_BT, positions_BT = tokens_BT.view(1, -1), positions_BT.view(1, -1)
    output = model.base_model(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False)
    return output.last_hidden_state


def max_over_ranks(count: int, device: torch.device) -> int:
    """The largest count of any rank. A collective."""
    largest = torch.tensor(count, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def _attention_bias(model: PreTrainedModel, attention_BTT: Tensor) -> Tensor:
    """The mask (B, 1, T, T) in the form that the model's attention takes."""
    attention_B1TT = attention_BTT[:, None]
    if model.config._attn_implementation == "sdpa":
        return attention_B1TT
    lowest = torch.finfo(model.dtype).min
    return torch.zeros_like(attention_B1TT, dtype=model.dtype).masked_fill(~attention_B1TT, lowest)


class PolicyModule(nn.Module):
    """A causal language model whose forward gives log-probabilities of target tokens only."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens_BT: Tensor,
        target_mask_BT: Tensor,
        positions_BT: Tensor | None = None,
        before_N: Tensor | None = None,
        attention_BTT: Tensor | None = None,
        temperature: float = 1.0,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(logprobs_N, entropy_N) of `tokens_BT[target_mask_BT]`, row by row, each given the
        tokens before it.

        The arguments are those of a `PackedBatch`. `target_mask_BT` is never set on the first token
        of a sequence. The head runs on the positions before targets alone. Without `before_N` these
        are the ones to the left of the targets. entropy_N is empty without `with_entropy`.
        """
        if before_N is None:
            before_N = torch.nonzero(target_mask_BT.flatten()).squeeze(1) - 1
        hidden_BTD = last_hidden(self.model, tokens_BT, positions_BT, attention_BTT)
        targets_N = tokens_BT[target_mask_BT]
        count = len(targets_N)
        # The head runs on this rank's share of the targets, where ranks share rows.
        before_N, targets_N = own_share(before_N), own_share(targets_N)
        hidden_ND = hidden_BTD.flatten(0, 1)[before_N]
        chunks = num_chunks(len(hidden_ND), self.model.config.get_text_config().vocab_size)
        if is_sharded(self.model.parameters()):
            # Under ZeRO-3 all ranks gather the head's weights for each chunk.
            chunks = max_over_ranks(chunks, hidden_ND.device)
        head = partial(own_logits, self.model)
        logprobs_N, entropy_N = chunked_logprobs(
            head, hidden_ND, targets_N, temperature, with_entropy, chunks
        )
        if with_entropy:
            entropy_N = join_shares(entropy_N, count)
        return join_shares(logprobs_N, count), entropy_N


class ScalarModule(nn.Module):
    """A sequence-classification model whose forward gives its scalar at every position."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        attention_BTT: Tensor | None = None,
    ) -> Tensor:
        """float32 (B, T): the scalar on reading each token, minus the reward model's bias
        (`center_rewards`)."""
        hidden_BLD = _own_hidden(self.model, tokens_BT, positions_BT, attention_BTT)
        scalars_BL = scalar_head(self.model)(hidden_BLD).squeeze(-1).float()
        scalars_BT = gather_rows(scalars_BL, tokens_BT.shape, is_divided=False)
        return scalars_BT - getattr(self.model.config, "reward_bias", 0.0)
