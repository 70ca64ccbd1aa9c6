"""Reward models with a tokenizer of their own: the score is that of the text, rendered for them."""

import numpy as np
import pytest
import torch

from actors.config import ScoringConfig
from actors.reward_config import RewardsConfig
from actors.scoring import ScoringActor
from common.errors import UserError
from learners.data.reward_tokenizer import own_tokenizer
from learners.data.samples import Samples, offsets_of
from learners.data.tokenizer import train_tokenizer
from learners.data.tokenizer_loading import load_tokenizer
from learners.data.turn_tokens import encode_prompt
from learners.models import build_policy, load_scalar, scalar_from_policy
from tests.learners import fixtures

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|end_of_turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
PROMPTS = ("What is the capital of Peru?", [{"role": "user", "content": "Name a city of Iran."}])
ANSWERS = ("The capital is Lima.", "Oslo", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """policy and reward of one tokenizer; other, of another vocabulary and template; same, of the policy's
    tokenizer and another head."""
    path = tmp_path_factory.mktemp("own")
    fixtures.make_files(path)
    other = train_tokenizer([*fixtures.TEXTS, "assistant user city Lima Oslo of Iran " * 9], 300)
    other.chat_template = TEMPLATE.replace("<|end_of_turn|>", other.eos_token)
    build_policy(fixtures.MODEL, other, seed=3).save_pretrained(path / "base")
    scalar_from_policy(path / "base", seed=4).save_pretrained(path / "other")
    other.save_pretrained(path / "other")
    scalar_from_policy(path / "policy", seed=5).save_pretrained(path / "same")
    load_tokenizer(path / "policy").save_pretrained(path / "same")
    return path


def samples_of(folder) -> tuple[Samples, dict]:
    """Every answer to every prompt as the policy's tokens; the last one was cut."""
    tokenizer = load_tokenizer(folder / "policy")
    prompts, sequences, ids = [], [], []
    for p, prompt in enumerate(PROMPTS):
        for answer in ANSWERS:
            prompts.append(len(encode_prompt(tokenizer, prompt)))
            response = tokenizer.encode(answer, add_special_tokens=False)
            sequences.append([*encode_prompt(tokenizer, prompt), *response, tokenizer.eos_token_id])
            ids.append(p)
    sequences[-1] = [*sequences[-1][:-1], *tokenizer.encode(" and", add_special_tokens=False)]
    lengths = [len(sequence) for sequence in sequences]
    total = sum(lengths)
    samples = Samples(
        tokens_N=np.concatenate(sequences).astype(np.int32),
        offsets=offsets_of(lengths),
        prompt_lengths_B=np.array(prompts, dtype=np.int32),
        logprobs_N=np.zeros(total, dtype=np.float32),
        versions_N=np.zeros(total, dtype=np.int32),
        prompt_ids_B=np.array(ids),
        ended_B=np.arange(len(ids)) < len(ids) - 1,
    )
    return samples, {p: {"prompt": prompt} for p, prompt in enumerate(PROMPTS)}


def make_actor(folder, trained="reward", **rewards):
    config = ScoringConfig(dtype="float32", batch_tokens=256)
    settings = RewardsConfig(**rewards)
    trained_path = str(folder / trained) if trained else None
    return ScoringActor(str(folder / "policy"), trained_path, config, settings, fixtures.MODEL, False)


def score_of_text(folder, text) -> float:
    """By transformers alone: the scalar at the last token of the rendered text."""
    model, tokenizer = load_scalar(folder / "other"), load_tokenizer(folder / "other")
    tokens = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.no_grad():
        return float(model.score(model.base_model(tokens).last_hidden_state[0, -1]))


def test_score_is_that_of_the_text_in_the_models_own_rendering(folder):
    samples, rows = samples_of(folder)
    scores, _ = make_actor(folder, trained="other").score(samples, 1.0, rows)
    end = load_tokenizer(folder / "other").eos_token
    expected = []
    for prompt in ("What is the capital of Peru?", "Name a city of Iran."):
        for answer in ANSWERS:
            expected.append(f"[user] {prompt}{end}\n[assistant] {answer}{end}")
    expected[-1] = expected[-1].removesuffix(end) + " and"
    assert scores.raw_CB[0] == pytest.approx([score_of_text(folder, text) for text in expected], abs=1e-5)
    assert not scores.failures
    assert len(set(scores.raw_CB[0].round(4).tolist())) == len(expected)


def test_models_of_both_kinds_stand_side_by_side(folder):
    samples, rows = samples_of(folder)
    other, same = str(folder / "other"), str(folder / "same")
    sources = [{"kind": "model"}, {"kind": "model", "path": other}, {"kind": "model", "path": same}]
    together, _ = make_actor(folder, sources=sources, combine="mean").score(samples, 1.0, rows)
    for c, name in enumerate(("reward", "other", "same")):
        alone, _ = make_actor(folder, trained=name).score(samples, 1.0, rows)
        assert together.raw_CB[c] == pytest.approx(alone.raw_CB[0], abs=1e-6), name


def test_a_response_that_cannot_be_rendered_or_is_too_long_is_quarantined(folder):
    samples, rows = samples_of(folder)
    actor = make_actor(folder, trained="other")
    rows[0] = {"prompt": "word " * 200}
    del rows[1]["prompt"]
    scores, _ = actor.score(samples, 1.0, rows)
    assert np.isnan(scores.raw_CB[0]).all()
    reasons = {failure["reason"] for failure in scores.failures}
    assert any("over the 64 positions of the reward model" in reason for reason in reasons)
    assert any("the prompt's text is not known" in reason for reason in reasons)


def test_own_tokens_are_known_by_what_they_write(folder):
    policy = load_tokenizer(folder / "policy")
    assert own_tokenizer(folder / "reward", policy) is None  # it has no tokenizer
    assert own_tokenizer(folder / "same", policy) is None
    assert own_tokenizer(folder / "other", policy) is not None
    template = folder / "template.jinja"
    template.write_text(TEMPLATE.replace("<|end_of_turn|>", policy.eos_token))
    assert own_tokenizer(folder / "same", policy, str(template)) is not None


def test_a_tokenizer_without_a_pad_token_gets_one(folder, tmp_path):
    tokenizer = load_tokenizer(folder / "other")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    loaded = own_tokenizer(tmp_path / "bare", load_tokenizer(folder / "policy"))
    assert loaded.pad_token_id not in (None, loaded.eos_token_id)


def test_a_model_of_another_vocabulary_needs_a_template(folder, tmp_path):
    tokenizer = load_tokenizer(folder / "other")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(
        UserError, match="no chat template; set chat_template beside its path to a Jinja file"
    ):
        own_tokenizer(tmp_path / "bare", load_tokenizer(folder / "policy"))
