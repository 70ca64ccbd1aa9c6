"""What a saved model says beside its weights: the tokens that end and pad its sequences, and a generation
config that transformers will write.

A task prepares it before it trains: what cannot be written would else be found after the last step, and
the stage would be lost."""

from __future__ import annotations

import tempfile

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from learners.data.chat_template import tell_once
from learners.data.tokenizer import end_token


def prepare_export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the model's configs the tokens of training, so that `generate` of transformers and vLLM stop
    where a policy was taught to and a reward model can take batches. Repairs a generation config that
    transformers reads and will not write. Raises UserError for a model that cannot be written."""
    # The two are one, but for models of text and images.
    for config in (model.config, model.config.get_text_config()):
        config.eos_token_id = end_token(tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config = _writable(model.generation_config, type(model).__name__)
        _set_tokens(model.generation_config, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder, state_dict={})
            tokenizer.save_pretrained(folder)
        except Exception as error:  # transformers raises many kinds, and any of them would lose the stage
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{type(model).__name__} of {model.name_or_path}: transformers loads it but cannot write it "
                f"back ({reason}); mend its configuration files"
            ) from error


def _set_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    known = config.eos_token_id or []
    stops = {end_token(tokenizer)}.union([known] if isinstance(known, int) else known)
    # Other tokens that the model was made to stop at still end a response that has one.
    config.eos_token_id = sorted(stops) if len(stops) > 1 else end_token(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id


def _writable(config: GenerationConfig, name: str) -> GenerationConfig:
    if _is_valid(config):
        return config
    # As in many models of 2023: a temperature beside do_sample: false. Whoever wrote a temperature down
    # wanted it to be used.
    config.do_sample = True
    if _is_valid(config):
        tell_once(f"{name}: do_sample is now true in its generation config, which cannot be saved without")
        return config
    tell_once(f"{name}: its generation config cannot be saved; it is replaced by one of the tokens alone")
    return GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id)


def _is_valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True
