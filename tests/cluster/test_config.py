"""A wrong key, value or file is one message that names it; overrides reach any depth."""

import pytest
import yaml

from cluster import stage_registry
from cluster.config import RunConfig
from cluster.config_loader import all_keys, load_config
from cluster.run.stage_inputs import CHECKPOINT_KEYS, FILE_KEYS, stage_inputs
from cluster.stage_registry import (
    DEFAULT_STAGES,
    EVERY_STAGE,
    STAGE_SPECS,
    STAGES,
    WITHOUT_EFFECT,
    StageSpec,
    policy_stages,
    stages_from,
)
from common.errors import UserError
from learners import objectives
from learners.data.config import KINDS
from learners.rl.config import ADVANTAGES


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("name: mine\nppo: {kl_coef: 0.1}\n")
    return file


def test_overrides_win_over_the_file_and_it_over_the_defaults(path):
    config = load_config(path, ["ppo.iterations=7", "ppo.optimizer.lr=3e-4", "data.corpus=null"])
    assert (config.ppo.kl_coef, config.ppo.iterations, config.ppo.optimizer.lr) == (0.1, 7, 3e-4)
    assert config.directory.parts[-2:] == ("runs", "mine")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ppo.kl_cof=0.1"], "unknown key ppo.kl_cof; did you mean ppo.kl_coef"),
        (["ppo.learning_rate=0.1"], "unknown key ppo.learning_rate; "),
        (["kl_coef=0.1"], "did you mean ppo.kl_coef"),
        (["ppo.iterations=many"], "ppo.iterations: "),
        (["ppo.iterations"], "expected dotted.key=value"),
        (["ppo.clip_low.a=1"], "ppo.clip_low: "),
        (["ppo.advantage=vtrace"], "expected one of gae, grpo, dr_grpo, rloo"),
        (["ppo.advantage=rloo", "ppo.responses=1"], "responses is 1, but advantage rloo compares"),
        (["ppo.advantage=grpo", "ppo.lam=0.9"], "lam has no effect here, only with ppo.advantage: gae"),
        (["ppo.advantage=grpo", "ppo.critic_optimizer.lr=1e-4"], "critic_optimizer has no effect here"),
        (["ppo.advantage=rloo", "ppo.gamma=0.9"], "only with ppo.advantage: gae, reinforce, reinforce_pp"),
        (["ppo.kl_horizon=100"], "kl_horizon has no effect here, only with ppo.kl_target"),
        (["ppo.kl_coef=0", "ppo.kl_in=loss"], "kl_in has no effect here, only with ppo.kl_coef over 0"),
        (["ppo.correction=tis", "ppo.correction_low=0.1"], "only with ppo.correction: icepop"),
        (["ppo.correction=icepop", "ppo.correction_low=2"], "must be below correction_high 2.0"),
        (["ppo.ptx_tokens=512"], "only with ppo.ptx_coef over 0"),
        (["sync.transport=ipc"], "sync.transport=ipc maps memory of GPUs, which needs cluster.device: cuda"),
        (["sync.adapters_only=true"], "sends the adapters of model.lora, which is not set"),
        (["sync.transport=nccl"], "sync.transport: "),
        (
            ["sft.optimizer.schedule=constant", "sft.optimizer.final_ratio=0.1"],
            "only with schedule: linear, cosine",
        ),
        (["evaluate.pass_metric=score"], "only with evaluate.judge and evaluate.samples over 1"),
        (["ppo.overlong_buffer=40"], "must be below max_response_tokens 32"),
        (["pretrain.batch_tokens=1000"], "not a multiple of sequence_length 128; 896 or 1024 would work"),
        (["learners.micro_batch_tokens=64"], "is over learners.micro_batch_tokens=64"),
        (["ppo.kl_coef.a=1"], "kl_coef is a value, not a section"),
        (["ppo.minibatches=3"], "256 is not divisible by minibatches 3; these would work: 1, 2, 4"),
        (["collect.responses=3"], "collect.responses: "),
        (["stages=[sft,pretrain]"], "in this order: pretrain, sft"),
        (["stages=[sft,sft]"], "stages: give each stage at most once"),
        (["stages=[sfp]"], "stages: no stage is named sfp; the stages are pretrain, sft, collect"),
        (["data.corpus={pth: a.txt}"], "unknown key data.corpus.0.pth; did you mean data.corpus.path"),
        (["rewards.sources=[{kind: model}, {kind: model}]"], "each may occur once"),
        (["rewards.sources=[{kind: function}]"], "rewards.sources.0.function.path: "),
        (["rewards.sources=[{kind: model, url: x}]"], "unknown key rewards.sources.0.model.url"),
        (
            ["learners.zero_stage=0", "learners.offload_optimizer=true"],
            "only with learners.zero_stage of at least 1",
        ),
        (["learners.init=sharded"], "only with learners.zero_stage of 3"),
        (["learners.sequence_parallel=4"], "sequence_parallel 4 does not divide ranks 2"),
        (["scoring.gpus=0.5", "scoring.tensor_parallel=2"], "have a whole GPU for each part"),
        (["model.path=some/model", "model.layers=3"], "layers has no effect here"),
        (["rounds.candidates=2"], "candidates has no effect here, only with select: fisher"),
        (["rounds.min_share=0.5"], "min_share has no effect here, only with deadline_h"),
        (["rounds.error_rate=0.1"], "error_rate has no effect here, only with labelers over 0"),
        (["rounds.select=fisher", "rounds.random_share=0.3"], "greater than or equal to 0.4"),
        (["rounds.previous=6"], "leaves none of the newest policy; give at most one less"),
        (["rounds.gate.comparisons=100"], "take at least 189 comparisons, or a larger flag_rise"),
        (["reward_model.margin_from=likert"], "only with reward_model.margin over 0"),
        (["reward_model.compare=[{name: a, path: b}]"], "only with reward_model.accuracy_by"),
        (["evaluate.policies=[{name: ppo, path: b}]"], "the name ppo is taken"),
        (["sample.max_response_tokens=300", "stages=[sample]"], "leaves no room for a prompt"),
        (["model.heads=7"], "each must divide the one before it"),
        (["ppo.max_response_tokens=256"], "leaves no room for a prompt"),
        (["name='a b'"], "name: "),
        (["stages=[sft"], "override 'stages=[sft': not valid YAML (expected ',' or ']'"),
        (["ppo={kl_coef: 1, kl_coef: 2}"], "not valid YAML (kl_coef is given twice"),
        (["=3"], "expected dotted.key=value"),
        (["ppo.=3"], "expected dotted.key=value"),
        (["data.corpus=[a.txt]", "data.corpus.0.path=b.txt"], "corpus is a list; give it whole"),
        (["ppo.kl_target=.inf"], "ppo.kl_target: Input should be a finite number"),
        (["stages=[pretrain]", "model.context=96"], "pretrain.sequence_length=128 is over model.context=96"),
        (["stages=[ppo]", "model.context=32"], "leaves no room for a prompt in model.context=32"),
    ],
)
def test_error_names_the_key_and_what_is_expected(path, overrides, message):
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    assert message in str(error.value)


def test_empty_override_takes_a_key_back_to_its_default(path):
    assert load_config(path, ["ppo.kl_coef="]).ppo.kl_coef == 0.35


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_resolved_config_has_no_inactive_key_and_loads_again(path, tmp_path, advantage):
    config = load_config(path, [f"ppo.advantage={advantage}"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert ("critic_optimizer" in config.ppo.model_dump()) == (advantage == "gae")
    assert load_config(resolved) == config


def test_recorded_config_can_be_served_with_keys(tmp_path):
    recorded = tmp_path / "config.yaml"
    recorded.write_text(yaml.safe_dump(load_config(None).model_dump(mode="json")))
    assert load_config(recorded, ["serve.api_keys=keys"]).serve.api_keys == "keys"


def test_every_advantage_has_its_function():
    assert all(callable(getattr(objectives, name)) for name in ADVANTAGES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 2: not valid YAML"),
        ("- 1", "expected keys and values, got list"),
        (
            "ppo: {kl_coef: 1}\nsft: {epochs: 1}\nppo: {lam: 1}",
            "line 3: not valid YAML (ppo is given twice, first in line 1",
        ),
        ("sft:\n  epochs: 1\n  epochs: 2", "line 3: not valid YAML (epochs is given twice, first in line 2"),
        ("1: 2", "Keys should be strings"),
        ("ppo.kl_coef: 1", "keys of a file are nested"),
        ("a: 1\n---\nb: 1", "line 2: not valid YAML"),
    ],
)
def test_file_that_is_no_config_is_named(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text + "\n")
    with pytest.raises(UserError, match=r"bad\.yaml") as error:
        load_config(file)
    assert message in str(error.value)


def test_file_in_another_encoding_is_named(tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml: byte 9 is not UTF-8"):
        load_config(file)
    file.write_bytes(b"\xef\xbb\xbfname: with_mark\n")
    assert load_config(file).name == "with_mark"


def test_sections_may_be_empty_or_share_keys(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("ppo:\n  optimizer:\nsft: {epochs: 3, <<: {epochs: 4, batch_size: 8}}\n")
    config = load_config(file, ["reward_model.optimizer.lr=1"])
    assert config.ppo == load_config(None).ppo
    assert (config.sft.epochs, config.sft.batch_size) == (3, 8)
    assert load_config(file, ["ppo.optimizer.lr=0.5"]).ppo.optimizer.lr == 0.5


def test_stages_that_are_not_run_refuse_nothing(path):
    config = load_config(path, ["stages=[sft,reward]", "model.context=30", "learners.micro_batch_tokens=64"])
    assert config.model.context == 30


def test_home_directory_in_every_path(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    keys = ["run_dir", "model.path", "model.chat_template", "learners.weights_dir", "reward_model.path"]
    keys += ["data.root", "data.corpus", "serve.api_keys", "serve.canary.file", "serve.models.a.path"]
    config = load_config(path, [f"{key}=~/x" for key in keys])
    values = yaml.safe_dump(config.model_dump(mode="json"))
    assert values.count("/home/ann/x") == len(keys)
    assert "~" not in values


def test_default_judge_is_not_applied_to_prompts_of_the_user(tmp_path):
    assert load_config(None).evaluate.judge == "cluster.quickstart.oracle:judge"
    own = load_config(None, ["data.heldout=heldout.jsonl"])
    assert own.evaluate.judge is None
    written = tmp_path / "config.yaml"
    written.write_text(yaml.safe_dump(own.model_dump(mode="json")))
    assert load_config(written) == own
    assert load_config(None, ["data.heldout=h.jsonl", "evaluate.judge=mine:judge"]).evaluate.judge == (
        "mine:judge"
    )


def test_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        load_config("nowhere.yaml")


def test_every_key_is_documented():
    undocumented = [key for key, text in all_keys(RunConfig).items() if not text]
    assert undocumented == []


def test_every_stage_names_existing_sections_data_and_function():
    keys = all_keys(RunConfig).keys()
    assert {*EVERY_STAGE, *WITHOUT_EFFECT, *CHECKPOINT_KEYS, *FILE_KEYS} <= keys
    for spec in STAGE_SPECS:
        assert set(spec.depends_on) <= keys
        assert set(spec.reads) <= set(KINDS)
        assert callable(spec.load())
        assert spec.title


def test_registry_keeps_the_order_of_the_stages():
    assert STAGES == ("pretrain", "sft", "collect", "sample", "reward", "best_of_n", "dpo", "ppo", "evaluate")
    assert DEFAULT_STAGES == ("pretrain", "sft", "collect", "reward", "ppo", "evaluate")
    assert stages_from("reward") == ("reward", "best_of_n", "dpo", "ppo", "evaluate")
    assert policy_stages() == ("pretrain", "sft", "best_of_n", "dpo", "ppo")


def test_new_stage_is_one_row(monkeypatch, path):
    row = StageSpec(name="distill", title="student", run="tests.cluster.test_config:all_keys")
    monkeypatch.setattr(stage_registry, "STAGE_SPECS", (*STAGE_SPECS, row))
    monkeypatch.setattr(stage_registry, "STAGES", (*STAGES, "distill"))
    monkeypatch.setattr("cluster.config.STAGES", (*STAGES, "distill"))
    config = load_config(path, ["stages=[pretrain,distill]"])
    assert config.stages == ["pretrain", "distill"]
    assert stage_registry.stage_spec("distill").load() is all_keys
    assert stage_inputs(config, "distill")["seed"] == 0


def test_the_reference_policy_is_there_for_a_penalty_or_an_alarm_on_the_kl():
    assert load_config(None).uses_reference
    assert not load_config(None, ["ppo.kl_coef=0"]).uses_reference
    assert load_config(None, ["ppo.kl_coef=0", "alarms.kl=5"]).uses_reference
    with pytest.raises(UserError, match=r"alarms\.stop has kl, but with ppo\.kl_coef=0"):
        load_config(None, ["ppo.kl_coef=0", "alarms.stop=[kl]"])


def test_decoding_of_the_endpoint_has_only_what_is_set(tmp_path):
    plain = load_config(None, ["serve.models.sft.path=sft"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain.model_dump(mode="json")))
    again = load_config(tmp_path / "config.yaml").serve
    assert again.decoding.model_fields_set == again.models["sft"].decoding.model_fields_set == set()
    limited = load_config(None, ["serve.decoding.max_tokens=50"])
    assert limited.model_dump(mode="json")["serve"]["decoding"] == {"max_tokens": 50}
