"""Stage 1: a tokenizer and a language model from text."""

from __future__ import annotations

from typing import Any

from cluster.context import Context
from cluster.stages.supervised import SupervisedStage
from learners.data.encoding import pack_corpus
from learners.data.tokenizer import train_tokenizer
from learners.data.tokenizer_loading import load_tokenizer


def run(context: Context) -> dict[str, Any]:
    config = context.config
    folder = context.run.stage("pretrain")
    if not context.run.paths.corpus_tokens.exists():
        prepare_corpus(context)
    learners = context.fleets.learners()
    stage = SupervisedStage(
        context,
        "pretrain",
        learners,
        total_steps=learners.start_pretrain(config.pretrain, folder, config.seed),
        checkpoint_every=config.pretrain.checkpoint_every,
        inputs=context.run.data("corpus"),
    )
    return stage.run()


def prepare_corpus(context: Context) -> None:
    """Writes the tokenizer and the packed corpus."""
    config, paths = context.config, context.run.paths
    rows, _ = context.read("corpus")
    texts = [record.text for _, record in rows]
    if config.model.path:
        tokenizer = load_tokenizer(config.model.path, config.model)
    else:
        tokenizer = train_tokenizer(texts, config.model.vocab_size)
    tokenizer.save_pretrained(paths.tokenizer)
    data = pack_corpus(texts, tokenizer, config.pretrain.sequence_length, config.pretrain.validation_share)
    # Last, since its presence says that both are there.
    data.save(paths.corpus_tokens)
