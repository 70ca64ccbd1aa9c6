"""Sequences of the pretraining corpus in PPO: for the PTX loss (Ouyang et al. 2022, Eq. 2), and
to measure how much of pretraining the policy forgets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.random_streams import Stream, generator
from learners.data.datasets import TokenData
from learners.data.packing import PackedBatch
from learners.task import TaskContext

MAX_HELDOUT_SEQUENCES = 64
"""Enough to see the loss change, few enough to measure it at every evaluation."""


@dataclass(frozen=True)
class TextMicroBatch:
    """Some sequences of the corpus; every token but the first of each is a target."""

    packed: PackedBatch
    num_targets: float
    """Targets of the whole step, over all micro-batches and ranks."""


class PretrainingCorpus:
    """The corpus of the pretrain stage, divided by the marks that it stored: PTX takes training
    sequences alone, and the loss is measured on validation sequences alone."""

    def __init__(self, corpus: TokenData, tokens_per_step: int, context: TaskContext) -> None:
        self.corpus, self.context = corpus, context
        self.training = np.flatnonzero(~corpus.is_validation_S)
        self.heldout = np.flatnonzero(corpus.is_validation_S)[:MAX_HELDOUT_SEQUENCES]
        # `pack_corpus` cuts the corpus into sequences of one length.
        self.sequences_per_step = max(1, tokens_per_step // int(corpus.lengths_S[0]))

    def ptx_sequences(self, version: int, step: int) -> np.ndarray:
        """The sequences of one optimizer step, drawn with replacement."""
        rng = generator(self.context.seed, Stream.PTX_SEQUENCES, version, step)
        return self.training[rng.integers(0, len(self.training), size=self.sequences_per_step)]

    def micro_batches(self, sequences: np.ndarray) -> list[TextMicroBatch]:
        """This rank's micro-batches of these sequences. They are equally long, so packing would
        gain nothing."""
        lengths = self.corpus.lengths_S[sequences]
        num_targets = float(lengths.sum() - len(lengths))
        micro_batches = []
        for positions in self.context.micro_batches(lengths, span=None):
            texts = [self.corpus.sequence(s) for s in sequences[positions]]
            targets = [np.arange(len(text)) > 0 for text in texts]
            packed = self.context.pack(texts, targets, span=None)
            micro_batches.append(TextMicroBatch(packed, num_targets))
        return micro_batches
