"""The pretraining corpus in PPO: what is trained on and what is measured, by pretraining's own marks."""

import numpy as np
import pytest

from learners.config import LearnerConfig
from learners.data.encoding import pack_corpus
from learners.data.tokenizer import train_tokenizer
from learners.rl.ptx import MAX_HELDOUT_SEQUENCES, PretrainingCorpus
from learners.task import TaskContext
from tests.learners import fixtures

TEXT = " ".join(fixtures.TEXTS * 40)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(fixtures.TEXTS, 320)


def pretraining_corpus(data, tokenizer, seed=0):
    context = TaskContext(rank=0, learner=LearnerConfig(ranks=1), tokenizer=tokenizer, seed=seed)
    return PretrainingCorpus(data, tokens_per_step=640, context=context)


@pytest.mark.parametrize("seed", range(4))
def test_ptx_never_trains_on_validation_sequences(tokenizer, seed):
    # The end of a single document is held out. Sequences drawn by the seed would be others.
    data = pack_corpus([TEXT], tokenizer, 16, validation_share=0.05)
    validation = set(np.flatnonzero(data.is_validation_S))
    assert validation == set(range(len(data.is_validation_S) - len(validation), len(data.is_validation_S)))
    corpus = pretraining_corpus(data, tokenizer, seed)
    assert set(corpus.heldout) == validation
    trained = set()
    for version in range(4):
        for step in range(8):
            trained |= set(corpus.ptx_sequences(version, step))
    assert len(trained) > len(data.is_validation_S) / 2
    assert not trained & validation


def test_the_loss_is_measured_on_the_first_validation_sequences(tokenizer):
    data = pack_corpus([TEXT] * 3, tokenizer, 16, validation_share=0.4)
    validation = np.flatnonzero(data.is_validation_S)
    assert len(validation) > MAX_HELDOUT_SEQUENCES
    corpus = pretraining_corpus(data, tokenizer)
    assert corpus.heldout.tolist() == validation[:MAX_HELDOUT_SEQUENCES].tolist()
    # Those that are not measured are not trained on either.
    assert corpus.training.tolist() == np.flatnonzero(~data.is_validation_S).tolist()


def test_micro_batches_hold_every_sequence_and_count_its_targets(tokenizer):
    data = pack_corpus([TEXT], tokenizer, 16)
    corpus = pretraining_corpus(data, tokenizer)
    sequences = corpus.ptx_sequences(0, 0)
    assert len(sequences) == 640 // 16
    micro_batches = corpus.micro_batches(sequences)
    assert {micro.num_targets for micro in micro_batches} == {len(sequences) * 15}
    assert sum(int(micro.packed.target_mask_RT.sum()) for micro in micro_batches) == len(sequences) * 15
