"""Stage 1: a tokenizer and a language model from text."""

from __future__ import annotations

from typing import Any

from cluster.context import Context
from cluster.stages.supervised import supervise
from learners.data.encoding import pack_corpus
from learners.data.tokenizer import train_tokenizer
from learners.models import load_tokenizer


def run(context: Context) -> dict[str, Any]:
    config, folder = context.config, context.run.stage("pretrain")
    if not (folder / "tokens.npz").exists():
        documents = [located.row["text"] for located in context.read("corpus")[0]]
        if config.model.path:
            tokenizer = load_tokenizer(config.model.path, config.model)
        else:
            tokenizer = train_tokenizer(documents, config.model.vocab_size)
        tokenizer.save_pretrained(folder / "tokenizer")
        settings = config.pretrain
        data = pack_corpus(
            documents, tokenizer, settings.sequence_length, settings.validation_share, config.seed
        )
        data.save(folder / "tokens.npz")
    learners = context.fleets.learners()
    total = learners.all("start_pretrain", config.pretrain, folder, config.seed)[0]
    return supervise(
        context, "pretrain", learners, total, config.pretrain.checkpoint_every, context.run.data("corpus")
    )
