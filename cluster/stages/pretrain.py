"""Stage 1: a tokenizer and a language model from a text file."""

from __future__ import annotations

from typing import Any

from cluster.context import Context
from cluster.stages.supervised import supervise
from learners.datasets import pack_corpus
from learners.errors import UserError
from learners.models import load_tokenizer
from learners.tokenizer import train_tokenizer


def run(context: Context) -> dict[str, Any]:
    config, folder = context.config, context.run.stage("pretrain")
    path = context.run.data("corpus")
    if not path.is_file():
        raise UserError(f"{path}: no such corpus; it should be a text file, documents parted by blank lines")
    documents = [d.strip() for d in path.read_text(encoding="utf-8").split("\n\n") if d.strip()]
    if not documents:
        raise UserError(f"{path}: the corpus is empty; it should hold text, documents parted by blank lines")
    if not (folder / "tokens.npz").exists():
        if config.model.path:
            tokenizer = load_tokenizer(config.model.path)
        else:
            tokenizer = train_tokenizer(documents, config.model.vocab_size)
        tokenizer.save_pretrained(folder / "tokenizer")
        data = pack_corpus(documents, tokenizer, config.pretrain.sequence_length)
        if len(data.offsets) < 3:
            raise UserError(
                f"{path}: too short for two sequences of pretrain.sequence_length={config.pretrain.sequence_length}"
            )
        data.save(folder / "tokens.npz")
    learners = context.fleets.learners()
    total = learners.all("start_pretrain", config.model, config.pretrain, folder, config.seed)[0]
    return supervise(context, "pretrain", learners, total, config.pretrain.save_every, [path])
