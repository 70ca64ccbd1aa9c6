"""What a saved model says about the tokens that it was trained with, and that it can be saved at all."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from common.errors import UserError
from learners.config import LearnerConfig, ModelConfig, OptimizerConfig, RewardModelConfig, SFTConfig
from learners.data.encoding import encode_demonstrations
from learners.data.ranking_groups import encode_rankings
from learners.data.records import SCHEMAS
from learners.data.sources import SourceRow
from learners.data.tokenizer import end_token
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.turn_tokens import encode_prompt, encode_response
from learners.export import prepare_export
from learners.models import load_scalar
from tests.learners import fixtures
from tests.learners.tokenizers_of_models import chatml

ADAM = OptimizerConfig(lr=1e-2, warmup_steps=2, schedule="constant")
SFT = SFTConfig(epochs=12, batch_size=8, validation_share=0.2, optimizer=ADAM)
REWARD = RewardModelConfig(epochs=2, batch_size=4, validation_share=0.3, optimizer=ADAM)
QUESTIONS = [f"What is {n}?" for n in range(10)]
# transformers reads it and refuses to save it, as those of the first Llama 2 and Vicuna models.
GENERATION = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 1}


def llama(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    # Of <|endoftext|>, which no turn of the template ends with.
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=330, **sizes, eos_token_id=1, bos_token_id=None, **options)
    )


def rows(kind, made):
    return [SourceRow(f"here, row {n}", SCHEMAS[kind].parse(row)) for n, row in enumerate(made, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model whose own end token is not the one of its template, demonstrations and rankings."""
    path = tmp_path_factory.mktemp("export")
    llama().save_pretrained(path / "base")
    chatml(end="<|endoftext|>", pad="<|endoftext|>").save_pretrained(path / "base")
    (path / "base" / "generation_config.json").write_text(json.dumps(GENERATION))
    tokenizer = load_tokenizer(path / "base")
    demonstrations = [{"prompt": q, "response": "It is 4."} for q in QUESTIONS]
    pairs = [{"prompt": q, "chosen": "It is 4.", "rejected": "Hello."} for q in QUESTIONS]
    dataset = fixtures.reader("demonstrations")
    encode_demonstrations(rows("demonstrations", demonstrations), tokenizer, 64, dataset).save(
        path / "demonstrations.npz"
    )
    encode_rankings(rows("rankings", pairs), tokenizer, 64, fixtures.reader("rankings"), 0.3).save(
        path / "rankings.npz"
    )
    return path


def trained(actor, folder):
    """The two stages on a model of the user's; the shift that centers the rewards."""
    actor.train(actor.start_sft(folder / "base", SFT, folder, 0))
    actor.export(folder / "sft")
    actor.train(actor.start_reward_model(folder / "sft", REWARD, folder, 0))
    shift = actor.center_rewards(folder / "demonstrations.npz")
    actor.export(folder / "reward")
    return shift


@pytest.fixture(scope="module")
def shift(folder):
    learner = LearnerConfig(ranks=1, zero_stage=0, micro_batch_tokens=512, dtype="float32")
    model = ModelConfig(path=str(folder / "base"), context=64)
    return fixtures.run_ranks(trained, folder, learner, model=model)


def test_a_saved_policy_stops_in_transformers_where_it_was_taught_to(folder, shift):
    model = AutoModelForCausalLM.from_pretrained(folder / "sft")
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == model.config.eos_token_id == end
    assert model.generation_config.eos_token_id == [1, end]
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id == 1
    prompt = torch.tensor([encode_prompt(tokenizer, QUESTIONS[0])])
    answer = model.generate(prompt, max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(answer) == "It is 4.<|im_end|>"


def test_a_saved_reward_model_takes_batches_in_transformers(folder, shift):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer(["Hello.", "It is 4. It is 4."], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (2, 1)


def test_demonstrations_score_zero_at_their_end_token(folder, shift):
    # ChatML writes a line break after it, at which neither rankings nor samples are scored.
    model, tokenizer = load_scalar(folder / "reward"), load_tokenizer(folder / "reward")
    assert abs(shift) > 0.01
    scores = []
    for question in QUESTIONS:
        ids = encode_response(tokenizer, question, "It is 4.", ended=True)
        assert ids[-1] == end_token(tokenizer)
        hidden = model.base_model(torch.tensor([ids])).last_hidden_state
        scores.append(float(model.score(hidden)[0, -1, 0].detach()) - model.config.reward_bias)
    assert abs(np.mean(scores)) < 1e-5


@pytest.mark.parametrize("own", [GENERATION, {"num_beams": 1, "early_stopping": True}])
def test_a_generation_config_that_cannot_be_saved_is_repaired(tmp_path, own):
    model, tokenizer = llama(), chatml()
    model.generation_config = GenerationConfig(**own)
    prepare_export(model, tokenizer)
    model.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id in np.atleast_1d(saved.eos_token_id)
    if "temperature" in own:
        assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.9, 0.6)


def test_a_model_that_cannot_be_saved_is_refused_when_its_task_starts():
    model = llama()
    model.config.custom = object()
    with pytest.raises(UserError, match=r"LlamaForCausalLM .* cannot write it back"):
        prepare_export(model, chatml())
