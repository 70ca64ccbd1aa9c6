"""What learners.deepspeed accepts, and that it reaches DeepSpeed."""

import pytest

from cluster.config_loader import load_config
from common.errors import UserError
from learners.config import LearnerConfig
from learners.deepspeed_arguments import _problems, check_arguments, merge
from tests.learners import fixtures


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bf16={enabled: true}", "bf16 cannot be passed on: set learners.dtype or ppo.dtype"),
        ("optimizer={type: Lamb}", "set the optimizer section of the stage"),
        ("gradient_clipping=1", "set clip_norm"),
        ("zero_optimization.stage=3", "stage cannot be passed on: set learners.zero_stage"),
        ("zero_optimization={offload_param: {device: cpu}}", "set learners.offload_parameters"),
        ("zero_optimization=3", "zero_optimization: expected keys and values"),
    ],
)
def test_keys_with_a_key_here_are_refused_by_it(override, message):
    with pytest.raises(UserError, match=r"learners\.deepspeed: ") as error:
        load_config(None, [f"learners.deepspeed.{override}"])
    assert message in str(error.value)


def test_unknown_keys_are_named_with_a_near_one():
    check_arguments({}, 2)  # starts no process
    with pytest.raises(UserError) as error:
        check_arguments({"zero_optimization": {"zero_quantised_weights": True}}, 3)
    assert str(error.value) == (
        "learners.deepspeed.zero_optimization.zero_quantised_weights: DeepSpeed has no such argument; did "
        "you mean zero_quantized_weights?"
    )


def test_values_are_checked_by_deepspeed():
    zero = {"zero_hpz_partition_size": 2, "zero_quantized_weights": True, "reduce_bucket_size": 1e6}
    good = {"zero_optimization": zero, "wall_clock_breakdown": True, "flops_profiler": {"enabled": True}}
    assert _problems(good, 3) == []
    assert "did you mean wall_clock_breakdown?" in _problems({"wall_clok_breakdown": True}, 2)[0]
    (problem,) = _problems({"zero_optimization": {"reduce_bucket_size": "many"}}, 2)
    assert problem.startswith("zero_optimization.reduce_bucket_size: Input should be a valid integer")
    assert "does not take these values" in _problems({"communication_data_type": "fp3"}, 2)[0]


def test_merge_goes_into_sections():
    ours = {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
    theirs = {"zero_optimization": {"reduce_bucket_size": 1}, "steps_per_print": 5}
    assert merge(ours, theirs) == {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1},
        "gradient_clipping": 1.0,
        "steps_per_print": 5,
    }


def settings(actor, folder):
    fixtures.pretrain(actor, folder)
    engine = actor.task.engine.engine
    return engine.zero_optimization_stage(), engine.zero_reduce_bucket_size(), engine.steps_per_print()


def test_keys_reach_the_engine(tmp_path):
    fixtures.make_files(tmp_path)
    config = LearnerConfig(
        ranks=1,
        dtype="float32",
        micro_batch_tokens=512,
        deepspeed={"zero_optimization": {"reduce_bucket_size": 123456}, "steps_per_print": 7},
    )
    assert fixtures.run_ranks(settings, tmp_path, config) == (2, 123456, 7)
