"""`hero plan`: what a run would do, before anything starts: arithmetic, placement, memory, and what
cannot work.

Loads no Ray, and torch only where the config names a model to open (`cluster.model_checks`): it answers
at once, or in a few seconds. `hero run` makes the same checks first.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from actors import vllm_arguments
from cluster.config import RunConfig
from cluster.function_checks import check_judge, check_reward_functions, check_round_judge
from cluster.layout_checks import check_gpus, check_room, check_sharing, joins_a_cluster
from cluster.layout_fit import NoRoomError
from cluster.layout_memory import check_gpu_memory, memory_table
from cluster.layout_picture import layout_tables
from cluster.memory_estimate import GIB
from cluster.model_shape import policy_shape
from cluster.placement import memory_by_process, placement, total_memory_gib
from cluster.precision import resolve
from cluster.rounds.effort import round_effort
from cluster.run.directory import RunDirectory
from cluster.sequence_slices import check_sequence_parallel, slice_figures
from common.errors import UserError
from learners import deepspeed_arguments
from learners.data.config import KINDS
from learners.data.forms.registry import load_converter


def print_plan(config: RunConfig, console: Console) -> None:
    """Prints the resolved config, the arithmetic, the placement; raises UserError if the run cannot
    work."""
    config, precisions = resolve(config, serving=True)
    console.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False)
    for line in precisions:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    check_starting_models(config)
    console.print(_figures("Model", model_figures(config)))
    if figures := batch_arithmetic(config):
        console.print(_figures("Batch arithmetic", figures))
    if "rounds" in config.model_fields_set:
        console.print(_figures("Rounds", round_effort(config)))
    fleets = Table(title="Placement", title_justify="left")
    for name in ("fleet", "actors", "threads each", "GPUs each", "GiB each, about", "holds"):
        fleets.add_column(name)
    for fleet in placement(config):
        counts = (str(fleet.actors), str(fleet.cpus), f"{fleet.gpus:g}")
        fleets.add_row(fleet.fleet, *counts, f"{fleet.memory.gib:.1f}", fleet.holds)
    console.print(fleets)
    # What does not fit is refused below, in the order of the checks.
    with contextlib.suppress(NoRoomError):
        for table in layout_tables(config):
            console.print(table)
    if (memory := memory_table(config)) is not None:
        console.print(memory)
    parts = ", ".join(f"{name} {gib:.1f}" for name, gib in memory_by_process(config).items())
    console.print(f"memory over all processes: about {total_memory_gib(config):.1f} GiB ({parts})")
    check_feasible(config)
    RunDirectory(config).check_inputs()


def _figures(title: str, figures: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    for quantity, value in figures:
        table.add_row(quantity, value)
    return table


def model_figures(config: RunConfig) -> list[tuple[str, str]]:
    """What the policy is, and the arithmetic that each part of the run uses: (quantity, value)."""
    shape = policy_shape(config)
    context = f"{config.model.context:,} of {shape.positions:,} positions"
    if shape.positions is None:
        context = f"{config.model.context:,}, without a limit of the model"
    return [
        ("starts from", config.model.path or "random weights"),
        ("class", shape.architecture),
        ("parameters", f"{shape.parameters:,}"),
        ("vocabulary", f"{shape.vocabulary:,}"),
        ("model.context", context),
    ]


def batch_arithmetic(config: RunConfig) -> list[tuple[str, str]]:
    """How prompts, responses and tokens become optimizer steps and micro-batches: (quantity,
    calculation)."""
    pretrain, collect = config.pretrain, config.collect
    figures = []
    if "pretrain" in config.stages:
        tokens = pretrain.steps * pretrain.batch_tokens
        figures.append(
            ("pretraining tokens", f"{pretrain.steps} steps x {pretrain.batch_tokens} = {tokens:,}")
        )
    if "collect" in config.stages:
        responses = collect.prompts * collect.responses
        figures.append(
            ("collected responses", f"{collect.prompts} prompts x {collect.responses} = {responses:,}")
        )
    if "best_of_n" in config.stages:
        best = config.best_of_n
        total = f"{best.prompts} prompts x {best.responses} = {best.prompts * best.responses:,}"
        figures.append(("best of n: responses", total))
        figures.append(("  demonstrations at most", f"{best.prompts:,}, one for each prompt"))
    if "dpo" in config.stages:
        figures.append(("DPO batch", f"{config.dpo.batch_size} prompts, each with all its pairs"))
        figures.append(("  passes", f"{config.dpo.epochs}, after one forward pass for the reference"))
    if "ppo" in config.stages:
        figures += _ppo_arithmetic(config)
    return figures + slice_figures(config)


def _ppo_arithmetic(config: RunConfig) -> list[tuple[str, str]]:
    ppo, learners = config.ppo, config.learners
    batch = ppo.prompts * ppo.responses
    batch_tokens = batch * config.model.context
    minibatch = batch // ppo.minibatches
    rank_share = batch / ppo.minibatches / learners.data_ranks
    micro_batches = -(-batch_tokens // (ppo.minibatches * learners.data_ranks * learners.micro_batch_tokens))
    steps = ppo.iterations * ppo.epochs * ppo.minibatches
    return [
        ("PPO batch", f"{ppo.prompts} prompts x {ppo.responses} responses = {batch} sequences"),
        ("  tokens at most", f"{batch} x {config.model.context} context = {batch_tokens:,}"),
        ("  minibatch", f"{batch} / {ppo.minibatches} = {minibatch} sequences, {rank_share:g} a rank"),
        (
            "  micro-batches a rank and minibatch, at most",
            f"{micro_batches} of {learners.micro_batch_tokens} tokens",
        ),
        ("PPO optimizer steps", f"{ppo.iterations} x {ppo.epochs} epochs x {ppo.minibatches} = {steps:,}"),
        ("PPO responses in total", f"{ppo.iterations} x {batch} = {ppo.iterations * batch:,}"),
    ]


def check_feasible(config: RunConfig) -> None:
    """Raises UserError for a config that could start, but not finish with the files and the machine
    there are."""
    for check in CHECKS:
        check(config)


def check_stage_option(config: RunConfig, option: str, stage: str) -> None:
    """Raises UserError if the stage that an option of `hero run` names is not one of the config's."""
    if stage not in config.stages:
        raise UserError(f"{option} {stage}: not one of the config's stages ({', '.join(config.stages)})")


def check_layout(config: RunConfig) -> None:
    # `hero run` would refuse it as well, but only after the checks below.
    RunDirectory(config).paths.check_layout()


def check_data(config: RunConfig) -> None:
    """The user's files exist, and the functions that convert their rows can be loaded."""
    for kind in KINDS:
        sources = getattr(config.data, kind)
        if not sources:
            continue
        RunDirectory(config).data(kind)
        for source in sources:
            if source.convert:
                load_converter(source.convert, f"data.{kind}.convert", kind)


def check_reward_model(config: RunConfig) -> None:
    """PPO and best of n without the reward stage take a reward model that is there already."""
    scores = {"best_of_n", "ppo"}.intersection(config.stages)
    if scores and "reward" not in config.stages and config.rewards.uses_reward_model:
        RunDirectory(config).model("reward")


def check_ptx_corpus(config: RunConfig) -> None:
    """PPO with the PTX loss has text to learn from."""
    made = "pretrain" in config.stages or RunDirectory(config).paths.corpus_tokens.exists()
    if "ppo" in config.stages and config.ppo.ptx_coef and not made and not config.data.corpus:
        raise UserError(f"ppo.ptx_coef={config.ppo.ptx_coef:g} needs text: give data.corpus or run pretrain")


def check_rankings(config: RunConfig) -> None:
    """The stages reward and dpo without the collect stage learn from the user's rankings, or from those
    of an earlier run."""
    learning = [stage for stage in ("reward", "dpo") if stage in config.stages]
    if not learning or "collect" in config.stages or config.data.rankings:
        return
    if not RunDirectory(config).paths.rankings.exists():
        raise UserError(
            f"stages has {learning[0]} but not collect, and data.rankings is empty: there is nothing to "
            "learn from"
        )


def check_whole_data(config: RunConfig) -> None:
    """Nothing of the quickstart's is silently mixed with the user's prompts."""
    data = config.data
    for given, missing in (("prompts", "heldout"), ("heldout", "prompts")):
        if "ppo" in config.stages and getattr(data, given) and not getattr(data, missing):
            raise UserError(
                f"data.{given} is set and data.{missing} is not: the ppo stage would take those of the "
                f"quickstart beside yours; set data.{missing} too"
            )
    if "collect" in config.stages and data.prompts:
        raise UserError(
            "the simulated labelers of stage collect know the quickstart's prompts only, and data.prompts is "
            "set; leave collect out and give data.rankings, or leave reward out too and score with "
            "rewards.sources of kind function, http or judge"
        )


def check_starting_models(config: RunConfig) -> None:
    """The models and the tokenizer that the config names can be opened, trained and sampled from."""
    template = config.model.chat_template
    if template and not Path(template).is_file():
        raise UserError(f"model.chat_template={template}: no such file; it should hold a Jinja template")
    if config.model.path or config.reward_model.path or config.rewards.model_paths:
        # Imports torch and transformers: seconds that a model with random weights does not need.
        from cluster.model_checks import check_models

        check_models(config)


def check_attention_width(config: RunConfig) -> None:
    model = config.model
    head_width = model.width // model.heads
    if config.cluster.device != "cpu" or model.path or not _has_fleet(config, "rollout"):
        return
    if head_width % 32:
        raise UserError(
            f"model.width={model.width} / model.heads={model.heads} = {head_width} per head; "
            "vLLM's attention on CPU needs a multiple of 32"
        )


def check_cores(config: RunConfig) -> None:
    if joins_a_cluster(config) or not _has_fleet(config, "learner"):
        return
    learners = config.learners
    cores = config.cluster.cpus or psutil.cpu_count() or 1
    needed = learners.ranks * learners.threads
    if needed > cores:
        raise UserError(
            f"learners.ranks={learners.ranks} x learners.threads={learners.threads} = {needed} cores, "
            f"but this run has {cores}; lower one of them"
        )


def check_memory(config: RunConfig) -> None:
    if joins_a_cluster(config):
        return
    needed, free = total_memory_gib(config), psutil.virtual_memory().available / GIB
    if needed > free:
        raise UserError(
            f"this run would take about {needed:.1f} GiB and {free:.1f} GiB are free; use fewer actors, "
            "a smaller model or learners.micro_batch_tokens"
        )


def check_pass_through(config: RunConfig) -> None:
    """vLLM and DeepSpeed know the arguments that are passed on to them."""
    vllm_arguments.check_arguments("rollout.vllm", config.rollout.vllm)
    vllm_arguments.check_arguments("serve.vllm", config.serve.vllm)
    deepspeed_arguments.check_arguments(config.learners.deepspeed, config.learners.zero_stage)


# In the order in which their errors help most: files first, then the model, then the machine.
CHECKS = (
    check_layout,
    check_whole_data,
    check_data,
    check_reward_functions,
    check_judge,
    check_round_judge,
    check_reward_model,
    check_ptx_corpus,
    check_rankings,
    check_starting_models,
    check_attention_width,
    check_sequence_parallel,
    check_cores,
    check_gpus,
    check_sharing,
    check_room,
    check_gpu_memory,
    check_memory,
    check_pass_through,
)


def _has_fleet(config: RunConfig, name: str) -> bool:
    """Whether a stage of the run uses these actors."""
    return any(fleet.fleet == name for fleet in placement(config))
