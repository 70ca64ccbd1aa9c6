"""A wrong key, value or file is one message that names it; overrides reach any depth."""

import pytest

from cluster.config import all_keys, load_config
from learners.errors import UserError


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("name: mine\nppo: {kl_coef: 0.1}\n")
    return file


def test_overrides_win_over_the_file_which_wins_over_the_defaults(path):
    config = load_config(path, ["ppo.iterations=7", "ppo.optimizer.lr=3e-4", "data.corpus=null"])
    assert (config.ppo.kl_coef, config.ppo.iterations, config.ppo.optimizer.lr) == (0.1, 7, 3e-4)
    assert config.directory.parts[-2:] == ("runs", "mine")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["ppo.kl_cof=0.1"], "unknown key ppo.kl_cof; did you mean ppo.kl_coef"),
        (["ppo.learning_rate=0.1"], "unknown key ppo.learning_rate; "),
        (["kl_coef=0.1"], "did you mean ppo.kl_coef"),
        (["ppo.iterations=many"], "ppo.iterations: "),
        (["ppo.iterations"], "expected dotted.key=value"),
        (["ppo.clip.low=1"], "ppo.clip: "),
        (["ppo.kl_coef.a=1"], "kl_coef is a value, not a section"),
        (["ppo.minibatches=3"], "256 is not divisible by minibatches 3; these would work: 1, 2, 4"),
        (["collect.responses=3"], "collect.responses: "),
        (["stages=[sft,pretrain]"], "in this order: pretrain, sft"),
        (["model.heads=7"], "each must divide the one before it"),
        (["ppo.max_response_tokens=256"], "leaves no room for a prompt"),
        (["name='a b'"], "name: "),
    ],
)
def test_a_fault_is_named(path, overrides, told):
    with pytest.raises(UserError) as fault:
        load_config(path, overrides)
    assert told in str(fault.value)


@pytest.mark.parametrize(
    ("text", "told"), [("a: [1", "line 2: not valid YAML"), ("- 1", "expected keys and values, found list")]
)
def test_a_file_that_is_no_config_is_named(tmp_path, text, told):
    file = tmp_path / "bad.yaml"
    file.write_text(text + "\n")
    with pytest.raises(UserError, match=r"bad\.yaml") as fault:
        load_config(file)
    assert told in str(fault.value)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        load_config("nowhere.yaml")


def test_every_key_is_documented():
    from cluster.config import RunConfig

    undocumented = [key for key, text in all_keys(RunConfig).items() if not text]
    assert undocumented == []
