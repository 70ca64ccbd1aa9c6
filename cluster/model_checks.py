"""Opens the models of a config without their weights, and refuses those that a run could not train,
sample from or save.

Every check is one that would otherwise fail in the middle of a run, in an actor. Imports torch and
transformers; `cluster.plan` imports this module for a config with `model.path` or
`reward_model.path` only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from actors.vllm_architectures import can_run
from actors.weights.files import weight_files
from cluster.config import RunConfig
from cluster.model_shape import ModelShape
from common.errors import UserError
from learners.data.reward_tokenizer import has_tokenizer, own_tokenizer
from learners.data.tokenizer_loading import load_tokenizer
from learners.model_paths import cached_folder, resolve_model_path
from learners.models import scalar_head

SAMPLING_STAGES = {"collect", "sample", "best_of_n", "ppo", "evaluate"}


@dataclass(frozen=True)
class OpenedModel:
    """A model on the meta device: all its modules and shapes, none of its values."""

    path: str
    model: PreTrainedModel
    shape: ModelShape


@cache
def open_policy(path: str) -> OpenedModel:
    """The causal language model of a folder or hub name. Raises UserError if it cannot be opened."""
    return _open("model.path", path, AutoModelForCausalLM)


@cache
def open_reward_model(path: str, key: str = "reward_model.path") -> OpenedModel:
    """The scalar model of a folder or hub name, which a key of the config names. Raises UserError if it
    cannot be opened."""
    return _open(key, path, AutoModelForSequenceClassification)


def has_own_tokenizer(config: RunConfig) -> bool:
    """Whether the model of `reward_model.path` reads other tokens than that of `model.path`."""
    if not config.reward_model.path or not config.model.path:
        return False
    policy = load_tokenizer(config.model.path, config.model)
    return own_tokenizer(config.reward_model.path, policy, config.reward_model.chat_template) is not None


def check_models(config: RunConfig) -> None:
    """Raises UserError for a model, tokenizer or template of the config that a stage could not work
    with."""
    if config.model.path:
        opened = open_policy(config.model.path)
        tokenizer = load_tokenizer(config.model.path, config.model)
        _check_vocabulary(opened, tokenizer)
        _check_positions(opened, config)
        _check_engine(opened, config)
        _check_scalar_class(opened, config)
        _check_weights("model.path", opened)
    templates = {"reward_model.path": config.reward_model.chat_template}
    paths = {"reward_model.path": config.reward_model.path}
    for c, path in config.rewards.model_paths.items():
        paths[f"rewards.sources.{c}.path"] = path
        templates[f"rewards.sources.{c}.path"] = config.rewards.template_of(c)
    for key, given in paths.items():
        if given:
            opened = open_reward_model(given, key)
            _check_one_output(opened, key)
            _check_weights(key, opened)
            _check_tokens(config, key, opened, templates[key])


def _open(key: str, path: str, auto_class: Any) -> OpenedModel:
    config = _read_config(key, path)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = dict(quantization).get("quant_method", "unknown method")
        raise UserError(
            f"{key}={path}: its weights are quantised ({method}), and such weights cannot be trained; "
            "give the model that it was made from"
        )
    try:
        with torch.device("meta"):
            model = auto_class.from_config(config)
    except ValueError as error:
        raise UserError(
            f"{key}={path}: transformers has no {_kind(auto_class)} for {type(config).__name__} "
            f"({_first_line(error)}); give a model of another architecture"
        ) from None
    return OpenedModel(path, model, _shape(model))


def _kind(auto_class: Any) -> str:
    return "causal language model" if auto_class is AutoModelForCausalLM else "sequence-classification model"


def _read_config(key: str, path: str) -> PreTrainedConfig:
    resolve_model_path(path)
    folder = Path(path)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UserError(
            f"{key}={path}: it holds an adapter and not a whole model; merge it into its base model first "
            "(peft: AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…))"
        )
    if cached_folder(path) is None:
        _check_hub(key, path)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={path}: its config.json cannot be read ({_first_line(error)})") from None


def _check_hub(key: str, name: str) -> None:
    """Raises UserError for a name that the hub does not give. Asks once: the loaders of transformers
    would try for half a minute."""
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{key}={name}: no such folder, and with HF_HUB_OFFLINE set no such model in the cache of the "
            f"hub ({constants.HF_HUB_CACHE}); give a folder, or download the model first"
        )
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # of the hub, or of any of the layers that reach it
        raise UserError(
            f"{key}={name}: no such folder, and not a model that the hub gives ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".:")


def _shape(model: PreTrainedModel) -> ModelShape:
    config = model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    # 1 for architectures without such heads, or with others in each layer: they cannot be divided.
    heads = getattr(config, "num_attention_heads", None) or 1
    mlp_width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return ModelShape(
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        vocabulary=embedding.shape[0],
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        mlp_width=mlp_width or 4 * config.hidden_size,  # GPT-2's where its config has none
        tied=head is not None and head.weight is embedding,
        positions=_positions(config),
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
    )


def _positions(config: PreTrainedConfig) -> int | None:
    """Longest sequence, as vLLM derives it: rotary embeddings may be stretched by a factor."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    rope: Any = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("linear", "dynamic"):
        limit *= rope.get("factor") or 1
    return int(limit)


def _check_vocabulary(opened: OpenedModel, tokenizer: Any) -> None:
    largest, rows = max(tokenizer.get_vocab().values()), opened.shape.vocabulary
    if largest >= rows:
        raise UserError(
            f"model.path={opened.path}: its tokenizer has token ids up to {largest}, but the embedding "
            f"of the model has {rows} rows; enlarge it (resize_token_embeddings({largest + 1})) and save the "
            "model, or take the tokenizer that belongs to it"
        )


def _check_positions(opened: OpenedModel, config: RunConfig) -> None:
    context, limit = config.model.context, opened.shape.positions
    if limit is not None and context > limit:
        raise UserError(
            f"model.context={context} is over the {limit} positions of model.path={opened.path} "
            f"(max_position_embeddings of its config.json); set model.context to at most {limit}"
        )


def _check_engine(opened: OpenedModel, config: RunConfig) -> None:
    if not SAMPLING_STAGES.intersection(config.stages):
        return
    if not can_run(type(opened.model)):
        raise UserError(
            f"model.path={opened.path}: vLLM cannot run {opened.shape.architecture}, so the stages "
            f"{', '.join(sorted(SAMPLING_STAGES))} cannot sample from it; give another architecture"
        )
    settings = opened.model.config.get_text_config()
    head_width = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    if config.cluster.device == "cpu" and head_width % 32:
        raise UserError(
            f"model.path={opened.path}: its attention has {head_width} per head; vLLM's attention on CPU "
            "needs a multiple of 32"
        )


def _check_scalar_class(opened: OpenedModel, config: RunConfig) -> None:
    """A reward model or critic made from the policy needs a class with one output."""
    user = _scalar_user(config)
    if user is None:
        return
    settings = copy.deepcopy(opened.model.config)
    settings.num_labels = 1
    try:
        with torch.device("meta"):
            scalar_head(AutoModelForSequenceClassification.from_config(settings))
    except (ValueError, UserError):
        raise UserError(
            f"model.path={opened.path}: transformers has no sequence-classification model with a linear head "
            f"for {opened.shape.architecture}, and {user} needs one; leave the reward stage out, score with "
            "rewards.sources of kind function or http, and choose ppo.advantage without a critic (grpo, rloo)"
        ) from None


def _scalar_user(config: RunConfig) -> str | None:
    """What makes a scalar model from the policy, if anything does."""
    if "reward" in config.stages and not config.reward_model.path:
        return "the reward stage"
    has_reward_model = config.rewards.uses_reward_model and not has_own_tokenizer(config)
    if "ppo" in config.stages and config.ppo.advantage_spec.critic and not has_reward_model:
        return f"the critic of ppo.advantage={config.ppo.advantage}"
    return None


def _check_one_output(opened: OpenedModel, key: str) -> None:
    scalar_head(opened.model)
    if opened.model.config.num_labels != 1:
        raise UserError(
            f"{key}={opened.path}: a reward model has one output, this one has "
            f"{opened.model.config.num_labels}"
        )


def _check_tokens(config: RunConfig, key: str, opened: OpenedModel, template: str | None) -> None:
    """A reward model reads the policy's tokens, or has a tokenizer and a chat template of its own."""
    if not config.model.path:
        return
    policy, vocabulary = open_policy(config.model.path).shape.vocabulary, opened.shape.vocabulary
    own = own_tokenizer(opened.path, load_tokenizer(config.model.path, config.model), template)
    if own is None and policy != vocabulary and not has_tokenizer(opened.path):
        raise UserError(
            f"model.path={config.model.path} has a vocabulary of {policy} and {key}={opened.path} one of "
            f"{vocabulary}; without a tokenizer of its own, the reward model must use the policy's, so both "
            "need one tokenizer"
        )


def _check_weights(key: str, opened: OpenedModel) -> None:
    """The files are there, if the model is in a folder or in the cache of the hub."""
    folder = cached_folder(opened.path)
    if folder is not None:
        try:
            weight_files(folder)
        except UserError as error:
            raise UserError(f"{key}={error}") from None
    elif constants.HF_HUB_OFFLINE:
        raise UserError(f"{key}={opened.path}: the cache of the hub has its config but not its weights")
