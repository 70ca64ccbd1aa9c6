"""Every path of a run directory, in one class. `docs/run-directory.md` describes what is in each.

Used by the stages (through `cluster.run.directory.RunDirectory`), by serving and by the tools that
read finished runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.files import read_json, write_json

# Version of the layout below. It grows when a reader of an older directory would misread it.
LAYOUT = 2


@dataclass(frozen=True)
class StagePaths:
    """Paths of one stage. `folder` is RUN/STAGE."""

    folder: Path

    @property
    def done(self) -> Path:
        return self.folder / "done.json"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def wandb_id(self) -> Path:
        return self.folder / "wandb_id"

    # Logs of one row or more for each step, which only some stages write.
    @property
    def samples(self) -> Path:
        return self.folder / "samples.jsonl"

    @property
    def alarms(self) -> Path:
        return self.folder / "alarms.jsonl"

    @property
    def batches(self) -> Path:
        return self.folder / "batches.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.folder / "quarantine.jsonl"

    @property
    def step_logs(self) -> tuple[Path, ...]:
        """A stage that continues from a checkpoint first removes the rows of later steps from
        these."""
        return (self.samples, self.alarms, self.batches, self.quarantine)


@dataclass(frozen=True)
class TrainingInputPaths:
    """What a supervised stage trains on. Learner ranks find it by the folder, which is that of
    the stage or of its folds."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def corpus_tokens(self) -> Path:
        return self.folder / "tokens.npz"

    @property
    def demonstration_tokens(self) -> Path:
        return self.folder / "demonstrations.npz"

    @property
    def ranking_tokens(self) -> Path:
        return self.folder / "rankings.npz"


@dataclass(frozen=True)
class RunPaths:
    root: Path

    def stage(self, name: str) -> StagePaths:
        return StagePaths(self.root / name)

    def data(self, kind: str) -> Path:
        """What the quickstart's generator writes: corpus.txt, demonstrations.jsonl, prompts.jsonl,
        heldout.jsonl."""
        name = "corpus.txt" if kind == "corpus" else f"{kind}.jsonl"
        return self.quickstart_data / name

    def version(self, name: str) -> Path:
        """A stored policy version, for example ppo-20."""
        return self.versions / name

    # The whole run.
    @property
    def layout(self) -> Path:
        return self.root / "layout.json"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def lineage(self) -> Path:
        return self.root / "lineage.jsonl"

    @property
    def failures(self) -> Path:
        return self.root / "failures.jsonl"

    @property
    def timings(self) -> Path:
        return self.root / "timings.json"

    @property
    def scale(self) -> Path:
        return self.root / "scale.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def wandb(self) -> Path:
        return self.root / "wandb"

    @property
    def quickstart_data(self) -> Path:
        return self.root / "data"

    # Serving.
    @property
    def versions(self) -> Path:
        return self.root / "versions"

    @property
    def current(self) -> Path:
        return self.root / "current.json"

    @property
    def promotions(self) -> Path:
        return self.root / "promotions.jsonl"

    @property
    def promotions_lock(self) -> Path:
        return self.root / "promotions.lock"

    @property
    def endpoint(self) -> Path:
        return self.root / "endpoint.json"

    @property
    def feedback(self) -> Path:
        return self.root / "feedback"

    @property
    def feedback_rankings(self) -> Path:
        return self.feedback / "rankings.jsonl"

    @property
    def feedback_other(self) -> Path:
        return self.feedback / "other.jsonl"

    # Stages, in their order.
    @property
    def tokenizer(self) -> Path:
        return self._inputs("pretrain").tokenizer

    @property
    def corpus_tokens(self) -> Path:
        return self._inputs("pretrain").corpus_tokens

    @property
    def demonstration_tokens(self) -> Path:
        return self._inputs("sft").demonstration_tokens

    @property
    def responses(self) -> Path:
        return self.root / "collect" / "responses.jsonl"

    @property
    def rankings(self) -> Path:
        return self.root / "collect" / "rankings.jsonl"

    @property
    def ranking_tokens(self) -> Path:
        return self._inputs("reward").ranking_tokens

    @property
    def folds(self) -> Path:
        return self.root / "reward" / "folds"

    @property
    def fold_counts(self) -> Path:
        return self.folds / "counts.json"

    @property
    def fold_rankings(self) -> Path:
        return TrainingInputPaths(self.folds).ranking_tokens

    @property
    def ppo_export(self) -> Path:
        return self.root / "ppo" / "export"

    @property
    def alarms(self) -> Path:
        return self.stage("ppo").alarms

    @property
    def batches(self) -> Path:
        return self.stage("ppo").batches

    @property
    def samples(self) -> Path:
        return self.stage("ppo").samples

    @property
    def quarantine(self) -> Path:
        return self.stage("ppo").quarantine

    @property
    def best_of_n(self) -> Path:
        return self.root / "ppo" / "best_of_n.json"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluate" / "results.json"

    @property
    def answers(self) -> Path:
        return self.root / "evaluate" / "answers.jsonl"

    def _inputs(self, stage: str) -> TrainingInputPaths:
        return TrainingInputPaths(self.root / stage)

    def check_layout(self) -> None:
        """Raises UserError for a run directory that an older version of this program wrote."""
        if self.config.exists() and (read_json(self.layout) or {}).get("version") != LAYOUT:
            raise UserError(
                f"{self.root}: this run directory has the layout of an older version and cannot be "
                "continued, served or reported; choose another run_dir (its STAGE/model folders are plain "
                "Hugging Face models and stay usable by path)"
            )

    def write_layout(self) -> None:
        write_json(self.layout, {"version": LAYOUT})
