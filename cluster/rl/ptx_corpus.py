"""The corpus of PPO, for the PTX loss (Ouyang et al. 2022, Eq. 2) and to measure what the policy forgets."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cluster.context import Context
from common.run_paths import TrainingInputPaths
from learners.data.encoding import pack_corpus


def ppo_corpus(context: Context, tokenizer: PreTrainedTokenizerBase) -> Path | None:
    """Packed tokens: those that the pretrain stage trained on, or else, with ppo.ptx_coef, those of
    data.corpus, for a policy that comes from elsewhere. None without either."""
    config, paths = context.config, context.run.paths
    if paths.corpus_tokens.exists():
        return paths.corpus_tokens
    if not config.ppo.ptx_coef:
        return None
    packed = TrainingInputPaths(context.run.stage("ppo")).corpus_tokens
    # Also after a restart or a failure: a large corpus takes long to encode.
    if not packed.exists():
        rows, _ = context.read("corpus")
        settings = config.pretrain
        texts = [record.text for _, record in rows]
        pack_corpus(texts, tokenizer, settings.sequence_length, settings.validation_share).save(packed)
    return packed
