"""Weights in buckets: nothing lost, nothing twice, merged like the weights one by one."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.config import LoRAConfig
from learners.data.tokenizer import train_tokenizer
from learners.lora import add_adapters, merged_weights
from learners.models import build_policy
from learners.weight_buckets import adapter_bucket, cut, weight_buckets
from tests.learners.fixtures import MODEL, TEXTS


@given(st.lists(st.integers(0, 1000)), st.integers(1, 1500))
def test_every_tensor_is_in_one_bucket_and_only_large_tensors_exceed_its_size(sizes, max_bytes):
    buckets = cut(sizes, max_bytes)
    assert [index for bucket in buckets for index in bucket] == list(range(len(sizes)))
    for number, bucket in enumerate(buckets):
        total = sum(sizes[index] for index in bucket)
        assert len(bucket) == 1 or total <= max_bytes
        # No bucket could have taken the first tensor of the next one.
        if number + 1 < len(buckets):
            assert total + sizes[buckets[number + 1].start] > max_bytes


def lora_model():
    """A small policy with adapters that change it."""
    model = build_policy(MODEL, train_tokenizer(TEXTS, MODEL.vocab_size), seed=1)
    add_adapters(model, LoRAConfig(rank=2), None)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_adapters_alone_are_small_and_refused_where_other_weights_are_trained():
    model = lora_model()
    [(bucket, last)] = adapter_bucket(model, lambda parameters: nullcontext())
    assert last
    size = sum(tensor.nbytes for _, tensor in bucket)
    assert size < 0.1 * sum(parameter.nbytes for parameter in model.parameters())
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="adapters alone are trained"):
        next(adapter_bucket(model, lambda parameters: nullcontext()))


@pytest.mark.parametrize("lora", [False, True])
def test_buckets_hold_the_merged_weights_and_are_gathered_one_after_the_other(lora):
    model = build_policy(MODEL, train_tokenizer(TEXTS, MODEL.vocab_size), seed=1)
    if lora:
        model = lora_model()
    gathered = []

    @contextmanager
    def gather(parameters):
        gathered.append(parameters)
        yield
        gathered.pop()

    expected = {name: tensor.clone() for name, tensor in merged_weights(model, gather)}
    seen, ends = {}, []
    for bucket, last in weight_buckets(model, gather, 1 << 16):
        assert len(gathered) == 1
        needed = {id(parameter) for parameter in gathered[0]}
        assert len(needed) == len(gathered[0])
        seen |= {name: tensor.clone() for name, tensor in bucket}
        ends.append(last)
    assert not gathered
    assert len(ends) > 2
    assert ends == [False] * (len(ends) - 1) + [True]
    assert list(seen) == list(expected)
    for name, tensor in seen.items():
        assert tensor.equal(expected[name]), name
