"""Stage 5: the actor-learner loop.

    prompts ─► rollout actors ─► scoring actors ─► learners ─► weights ─► rollout actors
                 (vLLM)         (reward, reference)  (PPO)

`PPOStage.iterate` is one iteration. The driver moves references: samples go from actor to actor
through the object store (`cluster.rl.rollout_scheduler`). The policy version of an iteration is
the number of updates before it: iteration `step` (from 1) learns with version `step - 1` and ends
with version `step` in the learners and, verified, in the engines.

After a failure the pipeline starts the stage again. It continues from the last checkpoint: the
learners' state, the KL coefficient, the scheduler's groups and the running statistics of the
rewards; alarms are restored from metrics.jsonl.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cluster.context import Context
from cluster.fleets.learner_fleet import flop_utilization
from cluster.rl.alarms import Alarms, emit
from cluster.rl.dynamic_sampling import DynamicSampler
from cluster.rl.evaluation import EvaluationPrompts, best_of_n_baseline, judge_policy
from cluster.rl.iteration_metrics import (
    IterationTimer,
    throughput_metrics,
    time_metrics,
)
from cluster.rl.promotion import promote_from_training, promotion_is_due
from cluster.rl.prompt_stream import PromptStream
from cluster.rl.ptx_corpus import ppo_corpus
from cluster.rl.reward_aggregator import rewards_of
from cluster.rl.rollout_scheduler import RolloutBatch, RolloutScheduler
from cluster.rl.weight_routes import make_route
from cluster.rl.weight_sync import WeightSync, sync_tolerance
from cluster.run.checkpoints import Checkpoints, CheckpointSchedule
from cluster.run.monitor import Monitor
from cluster.run.progress import Bar, progress
from common.files import write_json
from common.stop_request import check_stop, stop_request
from learners.data.reward_tokenizer import own_tokenizer
from learners.data.tokenizer import end_token
from learners.data.tokenizer_loading import load_tokenizer
from learners.rl.advantages import adapted_kl_coef

SHOWN_ANSWERS = 16
"""Answers of each evaluation that are written to samples.jsonl."""


def run(context: Context) -> dict[str, Any]:
    """Returns the metrics of the last evaluation. Raises UserError for a missing model or corpus,
    WeightSyncError, RunStoppedError (alarms.stop, rewards.quarantine_share), and FleetError if an
    actor fails."""
    stage = PPOStage(context)
    with (
        context.monitor("ppo") as monitor,
        progress("ppo", total=stage.config.iterations, done=stage.first_version) as bar,
    ):
        return stage.run(monitor, bar)


@dataclass(frozen=True)
class Update:
    """What the learners return for one batch."""

    metrics: dict[str, float]
    learning_s: float
    digest: str
    """Of every sampled token, its log-probability and the scores."""


class PPOStage:
    """rollout -> score -> learn -> sync weights -> evaluate -> alarms -> checkpoint -> publish"""

    def __init__(self, context: Context) -> None:
        """Starts the fleets and restores the last checkpoint. Waits until all actors are ready."""
        self.context, self.config, self.paths = context, context.config.ppo, context.run.paths
        config, fleets, seed = self.config, context.fleets, context.config.seed
        context.run.stage("ppo")
        policy = context.run.model("sft")
        reward_model = None
        if context.config.rewards.uses_reward_model:
            reward_model = context.run.model("reward")
        self.models: list[Path] = [path for path in (policy, reward_model) if path]
        tokenizer = load_tokenizer(policy, context.config.model)
        rows, tokens = context.prompts("prompts", tokenizer, config.max_response_tokens)
        max_evaluated = context.config.evaluate.max_response_tokens
        heldout = EvaluationPrompts(*context.prompts("heldout", tokenizer, max_evaluated))
        self.heldout = heldout.sample(config.evaluate_prompts, seed)
        self.corpus = ppo_corpus(context, tokenizer)

        self.learners = fleets.learners()
        # Engines and scorers load their models while the learners load theirs.
        critic = self._critic_start(reward_model, tokenizer)
        starting = self.learners.submit_start_ppo(policy, critic, config, self.corpus, seed)
        self.rollouts = fleets.rollouts(policy)
        self.scorers = fleets.scorers(policy, reward_model)
        self.learners.wait(starting, "start_ppo")
        self.flops = self.learners.flops_per_token()
        self.weights = WeightSync(
            self.learners,
            self.rollouts,
            make_route(fleets, self.learners, self.rollouts, policy),
            config,
            self.heldout.tokens,
            sync_tolerance(context.config),
        )

        folder = self.paths.stage("ppo").checkpoints
        self.checkpoints = Checkpoints(
            folder, self.learners.save, config.keep_checkpoints, context.run.committed
        )
        self.schedule = CheckpointSchedule(
            config.checkpoint_every, config.iterations, config.checkpoint_minutes
        )
        # All that a restarted stage knows of the iterations before; empty at the first start.
        checkpoint = self.checkpoints.latest() or {}
        self.first_version: int = checkpoint.get("step", 0)
        self.kl_coef: float = checkpoint.get("kl_coef", config.kl_coef)
        if checkpoint:
            self.learners.load(self.checkpoints.path(self.first_version))
        quarantine, state = self.paths.quarantine, checkpoint.get("rewards")
        self.rewards = rewards_of(context.config, self.scorers, quarantine, state)
        self.scheduler = RolloutScheduler(
            self.rollouts,
            self.rewards,
            PromptStream(rows, tokens, config, seed, context.config.environment is not None),
            config,
            context.decoding("ppo", config.temperature),
            end_token(tokenizer),
            checkpoint.get("scheduler"),
        )
        self.sampler = DynamicSampler(self.scheduler, self.learners, config)
        self.evaluated: dict[str, float] = {}

    def _critic_start(self, reward_model: Path | None, tokenizer: PreTrainedTokenizerBase) -> Path | None:
        """What the critic starts as a copy of: it reads the policy's tokens, so not a reward model that reads
        others."""
        template = self.context.config.reward_model.chat_template
        reads_others = own_tokenizer(reward_model, tokenizer, template) is not None
        return None if reads_others else reward_model

    def run(self, monitor: Monitor, bar: Bar) -> dict[str, Any]:
        """All iterations from the checkpoint on; returns the metrics of the last evaluation."""
        self.monitor, self.bar = monitor, bar
        earlier = monitor.truncate_after(self.first_version)
        self.alarms = Alarms(self.context.config.alarms, earlier)
        self.stop_if_asked()
        self.weights.push(self.first_version)
        self.write_best_of_n()
        for step in range(self.first_version + 1, self.config.iterations + 1):
            self.iterate(step)
        self.finish()
        return self.evaluated

    def iterate(self, step: int) -> None:
        """One iteration. Its order matters after a failure: the learners' state is saved before
        the metrics are logged, and counts only when it is committed after them. So an iteration
        is either logged and counted, or done again."""
        timer = IterationTimer(self.fleets)
        # Dynamic sampling may ask the engines again before they get new weights.
        turns = self.context.fleets.turns
        turns.weights_follow = not self.config.dynamic_sampling
        batch = self.sampler.next_batch(version=step - 1)  # waits for engines
        timer.batch_ready()
        update = self.learn(step, batch)  # with staleness over 0 rollouts go on meanwhile
        timer.updated()
        self.scale()  # before the sync, since new engines hold old weights
        sync = self.weights.push(version=step)
        turns.weights_follow = False
        timer.stop()
        metrics = update.metrics | batch.metrics | sync | self.measure(timer, batch, update, sync)
        metrics |= self.evaluate_if_due(step)
        fired = self.alarms.check({"step": step, **metrics})
        metrics |= {f"alarm/{name}": 1.0 for name in sorted(self.alarms.active)}
        metrics |= promote_from_training(self.context, step)
        metrics |= self.save_if_due(step)
        self.log(step, batch, update, metrics)
        emit(fired, step, self.context.config.alarms, self.monitor, self.bar)  # may stop the run
        self.adapt_kl_coef(metrics)
        self.commit_if_due(step)
        self.publish_if_due(step)
        self.stop_if_asked()

    @property
    def fleets(self) -> dict[str, Any]:
        return {"rollout": self.rollouts, "scoring": self.scorers, "learner": self.learners}

    def learn(self, step: int, batch: RolloutBatch) -> Update:
        """One PPO update on every rank. Engines and scorers are kept busy while the driver
        waits."""
        refs = self.learners.submit_ppo_update(step - 1, self.kl_coef, batch.parts)
        results = self.scheduler.wait_while_rolling(self.learners, refs, "ppo_update")
        # Metrics are sums over ranks, the same on each.
        return Update(*results[0])

    def scale(self) -> None:
        """Applies the requests of `hero scale`. What engines that leave work on is sampled again
        by the others."""
        # Before they leave: engines that are gone would fail the calls still waited for.
        self.scheduler.requeue_engines(self.context.fleets.scaling.target_size("rollout"))
        for message in self.context.fleets.apply_scale_requests():
            self.bar.print_line(message)

    def measure(
        self, timer: IterationTimer, batch: RolloutBatch, update: Update, sync: dict[str, float]
    ) -> dict[str, float]:
        """Times, throughput and idle shares."""
        config = self.config
        times = timer.times(batch.generation_s, update.learning_s, sync)
        metrics = time_metrics(times) | timer.fleet_metrics()
        metrics |= throughput_metrics(times, update.metrics, config.epochs, config.staleness)
        rate = metrics["perf/learned_tokens_per_second"]
        return metrics | flop_utilization(rate, self.flops, len(self.learners))

    def evaluate_if_due(self, step: int) -> dict[str, float]:
        """Judges responses to held-out prompts, and measures how much of pretraining the policy
        keeps."""
        if step % self.config.evaluate_every and step != self.config.iterations:
            return {}
        rates, answers = judge_policy(self.context, self.heldout, temperature=1.0)
        if self.corpus:
            rates["pretrain_loss"] = self.learners.pretrain_loss()
        self.evaluated = {f"eval/{name}": value for name, value in rates.items()}
        shown = []
        for row, answer in zip(self.heldout.rows[:SHOWN_ANSWERS], answers, strict=False):
            shown.append({"prompt": row["prompt"], **answer})
        self.monitor.samples(step, shown)
        return self.evaluated

    def save_if_due(self, step: int) -> dict[str, float]:
        """Has the learners write their state; also if somebody wants to stop here."""
        if not self.schedule.is_due(step) and stop_request(self.paths) is None:
            return {}
        started = time.perf_counter()
        self.checkpoints.save(step)
        self.schedule.saved(step)
        return {"time/checkpoint": time.perf_counter() - started}

    def commit_if_due(self, step: int) -> None:
        """Adds the driver's state to what `save_if_due` wrote, which makes it a checkpoint."""
        if self.schedule.saved_step != step:
            return
        driver = {
            "kl_coef": self.kl_coef,
            "scheduler": self.scheduler.state,
            "rewards": self.rewards.state,
        }
        self.checkpoints.commit(step, driver)

    def stop_if_asked(self) -> None:
        """Raises RunStoppedError if a person has asked to stop training."""
        check_stop(self.paths, f"remove {self.paths.stop} and start it again to continue from its checkpoint")

    def log(self, step: int, batch: RolloutBatch, update: Update, metrics: dict[str, float]) -> None:
        self.monitor.batch(step, batch.prompt_ids, update.digest)
        self.monitor.log(step, metrics)
        parts = [f"reward {metrics['objective/scores']:+.2f}"]
        if "objective/kl" in metrics:
            parts.append(f"kl {metrics['objective/kl']:.2f}")
        parts.append(f"length {metrics['response/length']:.0f}")
        self.bar.advance(1, "  ".join(parts))

    def adapt_kl_coef(self, metrics: dict[str, float]) -> None:
        """For the next iteration, if ppo.kl_target is set."""
        config = self.config
        if config.kl_target is not None:
            kl, num_responses = metrics["objective/kl"], int(metrics["objective/responses"])
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, kl, config.kl_target, config.kl_horizon, num_responses
            )

    def publish_if_due(self, step: int) -> None:
        """Stores the policy as a version to serve."""
        # The last policy is published by `finish`, with the moving average.
        if step % self.config.publish_every or step == self.config.iterations:
            return
        # Stored already, and the files of a version must not change under an endpoint that took it.
        if promotion_is_due(self.config, step):
            return
        self.learners.export(self.paths.ppo_export)
        self.context.run.publish("ppo", step, self.paths.ppo_export)

    def finish(self) -> None:
        """Exports and publishes the stage's model."""
        model = self.paths.stage("ppo").model
        self.learners.export(model, use_ema=True)
        corpus = self.context.run.data("corpus") if self.config.ptx_coef else []
        self.monitor.lineage([*self.models, *self.context.run.data("prompts"), *corpus], [model])
        self.context.run.publish("ppo", self.config.iterations, model)
        shutil.rmtree(self.paths.ppo_export, ignore_errors=True)

    def write_best_of_n(self) -> None:
        """The best-of-N baseline of the SFT policy, which the engines hold before the first
        iteration only."""
        if self.first_version == 0 and self.config.best_of > 1:
            baseline = best_of_n_baseline(self.context, self.heldout, self.config.best_of)
            write_json(self.paths.best_of_n, baseline)
