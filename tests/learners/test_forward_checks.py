"""Log-probabilities and scalars are those of the model's own class, for many architectures with tiny
random weights; what does not hold is refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from common.errors import UserError
from learners import forward_checks
from learners.forward_checks import (
    can_share_prompts,
    check_forward,
    check_logprobs,
    check_packing_isolation,
    check_scalars,
    separates_packed,
)
from learners.models import PolicyModule, ScalarModule, last_hidden, scalar_head

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MINICPM3 = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "num_key_value_heads": 4,
    "dim_model_base": 4,
}
# Those whose logits are more than a matrix product, with strong settings of what they add.
BEYOND_A_MATRIX = {
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "falcon_h1": {"lm_head_multiplier": 0.25},
    "recurrent_gemma": {"logits_soft_cap": 0.5},
    "minicpm3": MINICPM3,
    "gemma2": {"final_logit_softcapping": 0.5},
    "gemma3_text": {"final_logit_softcapping": 0.5},
}
PLAIN = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "olmo2", "phi", "phi3", "gpt2"),
    *("gpt_neox", "opt", "bloom", "stablelm", "starcoder2", "glm4", "exaone4", "gpt_oss", "mamba", "lfm2"),
)
SCALAR = ("llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "bloom", "phi3", "ctrl", "mixtral")
LEAKING = ("opt", "bloom", "falcon_h1", "recurrent_gemma", "gpt_oss", "mamba")


def build(auto_class, name, **options):
    sizes = {**SIZES, **BEYOND_A_MATRIX.get(name, {}), **options}
    if name == "minicpm3":
        del sizes["head_dim"]
    torch.manual_seed(0)
    model = auto_class.from_config(AutoConfig.for_model(name, **sizes)).eval()
    # Of the size that trained models have, so that caps and scales matter.
    for parameter in model.parameters():
        parameter.data *= 3
    return model


def policy_of(name, **options):
    return PolicyModule(build(AutoModelForCausalLM, name, **options))


def scalar_of(name, **options):
    return ScalarModule(build(AutoModelForSequenceClassification, name, num_labels=1, **options))


def inputs():
    torch.manual_seed(1)
    tokens_BT = torch.randint(1, 90, (2, 9))
    mask_BT = torch.rand(2, 9) < 0.5
    mask_BT[:, 0], mask_BT[:, -1] = False, True
    return tokens_BT, mask_BT


@pytest.mark.parametrize("name", [*BEYOND_A_MATRIX, *PLAIN])
def test_logprobs_are_those_of_the_models_own_logits(name):
    policy, (tokens_BT, mask_BT) = policy_of(name), inputs()
    logprobs_N, _ = policy(tokens_BT, mask_BT, temperature=0.7)
    log_p_BTV = (policy.model(tokens_BT, use_cache=False).logits[:, :-1] / 0.7).log_softmax(-1)
    expected_BT = log_p_BTV.gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(logprobs_N, expected_BT[mask_BT[:, 1:]], rtol=1e-5, atol=2e-6)
    check_logprobs(policy)
    assert separates_packed(policy.model) == (name not in LEAKING)


@pytest.mark.parametrize("name", ["granite", "minicpm3", "cohere", "opt"])
def test_gradients_are_those_of_the_models_own_logits(name):
    policy, (tokens_BT, mask_BT) = policy_of(name), inputs()
    policy(tokens_BT, mask_BT)[0].sum().backward()
    gradients = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.zero_grad()
    log_p_BTV = policy.model(tokens_BT, use_cache=False).logits[:, :-1].log_softmax(-1)
    log_p_BTV.gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)[mask_BT[:, 1:]].sum().backward()
    for n, parameter in policy.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[n], parameter.grad, rtol=1e-4, atol=1e-5)


class MatrixAlone(PolicyModule):
    """Takes the head for a matrix product."""

    def forward(self, tokens_BT, target_mask_BT):
        hidden_BTD = self.model.base_model(tokens_BT).last_hidden_state[:, :-1]
        log_p_BTV = self.model.get_output_embeddings()(hidden_BTD).log_softmax(-1)
        return log_p_BTV.gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)[target_mask_BT[:, 1:]], None


@pytest.mark.parametrize("name", BEYOND_A_MATRIX)
def test_a_head_computed_otherwise_is_refused(name):
    with pytest.raises(UserError, match="log-probabilities computed here are not those of its own forward"):
        check_logprobs(MatrixAlone(policy_of(name).model))


def test_a_policy_that_reads_later_tokens_is_refused():
    with pytest.raises(UserError, match=r"BertLMHeadModel: .* depend on the tokens that come later"):
        check_logprobs(policy_of("bert"))


@pytest.mark.parametrize("name", SCALAR)
def test_scalars_are_those_of_the_models_own_class(name):
    scalar = scalar_of(name)
    tokens_BT, _ = inputs()
    expected_B = scalar.model(tokens_BT, use_cache=False).logits.squeeze(-1)
    torch.testing.assert_close(scalar(tokens_BT)[:, -1], expected_B, rtol=1e-5, atol=2e-6)
    check_scalars(scalar)


@torch.no_grad()
def test_a_scalar_that_happens_to_be_near_zero_is_no_other_head():
    scalar = scalar_of("qwen3")
    hidden_D = last_hidden(scalar.model, torch.tensor([[1, 2, 3]]), None)[0, -1]
    weight_1D = scalar_head(scalar.model).weight
    # Without its part along the hidden state, the scalar there is nothing but rounding.
    weight_1D -= (weight_1D @ hidden_D / hidden_D.square().sum()) * hidden_D
    assert abs(float(scalar(torch.tensor([[1, 2, 3]]))[0, -1])) < 1e-6
    check_scalars(scalar)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_scalar_heads_of_another_kind_are_refused(name):
    with pytest.raises(UserError, match="its scalar is not a linear head on the last token"):
        check_scalars(scalar_of(name))


def moved(model, size):
    """The model, whose packed rows differ by this share from what they were after another sequence."""
    forward = model.base_model.forward

    def shifted(input_ids, **options):
        output = forward(input_ids, **options)
        states = output.last_hidden_state
        first = (input_ids[:, :1, None] == 5).float()
        output.last_hidden_state = states + size * first * states.abs().max()
        return output

    model.base_model.forward = shifted
    return model


def test_packing_allows_rounding_and_refuses_leaks():
    check_packing_isolation(moved(policy_of("qwen3").model, 1e-6))
    with pytest.raises(UserError, match=r"learners\.packing=false"):
        check_packing_isolation(moved(policy_of("qwen3").model, 5e-3))
    with pytest.raises(UserError, match=r"OPTForCausalLM: .* does not separate"):
        check_forward(policy_of("opt"), packing=True)
    check_forward(policy_of("opt"), packing=False)


def test_packing_is_judged_in_float32_where_bfloat16_rounds():
    model = moved(policy_of("qwen3_moe").model.to(torch.bfloat16), 1e-6)
    weights = [parameter.clone() for parameter in model.parameters()]
    check_packing_isolation(model)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    with pytest.raises(UserError, match="does not separate"):
        check_packing_isolation(moved(policy_of("bloom").model.to(torch.bfloat16), 0.0))


@pytest.fixture
def no_float32(monkeypatch):
    """As on a GPU or in shards, where the model cannot be computed in float32 for a moment."""
    monkeypatch.setattr(forward_checks, "_fits_in_float32", lambda model: False)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gemma2", "olmo2"])
def test_rounding_of_bfloat16_is_told_from_a_leak_without_float32(no_float32, name):
    model = policy_of(name).model.to(torch.bfloat16)
    check_packing_isolation(model)
    check_packing_isolation(moved(model, 0.01))
    assert can_share_prompts(policy_of(name).model.to(torch.bfloat16)) == (name != "gemma2")  # its windows


@pytest.mark.parametrize("name", ["bloom", "opt", "mamba"])
def test_a_leak_in_bfloat16_is_refused_without_float32(no_float32, name):
    model = policy_of(name).model.to(torch.bfloat16)
    with pytest.raises(UserError, match="does not separate"):
        check_packing_isolation(model)
    if name == "mamba":
        assert not can_share_prompts(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_nan_are_no_other_architecture(dtype):
    for module in (policy_of("qwen3"), scalar_of("qwen3")):
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))
        check_forward(module.to(dtype), packing=True)


def test_parameters_come_back_as_the_same_memory():
    # They are views of DeepSpeed's flat buffers, which a copy would no longer follow.
    model = policy_of("qwen3").model.to(torch.bfloat16)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    assert can_share_prompts(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before
