"""Every path of a run directory, in one class. `docs/run-directory.md` describes what is in each.

Used by the stages (through `cluster.run.directory.RunDirectory`), by serving and by the tools that
read finished runs.
"""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import UserError
from common.files import read_json, write_json
from common.plugins import WORKING_DIRECTORY

# Version of the layout below. It grows when a reader of an older directory would misread it.
LAYOUT = 2


class StagePaths:
    """Paths of one stage. `folder` is RUN/STAGE."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = folder / "inputs.json"
        self.done = folder / "done.json"
        self.model = folder / "model"
        self.checkpoints = folder / "checkpoints"
        self.wandb_id = folder / "wandb_id"
        # Logs of one row or more for each step, which only some stages write.
        self.samples = folder / "samples.jsonl"
        self.alarms = folder / "alarms.jsonl"
        self.batches = folder / "batches.jsonl"
        self.quarantine = folder / "quarantine.jsonl"

    @property
    def step_logs(self) -> tuple[Path, ...]:
        """A stage that continues from a checkpoint first removes the rows of later steps from
        these."""
        return (self.samples, self.alarms, self.batches, self.quarantine)


class TrainingInputPaths:
    """What a supervised stage trains on. Learner ranks find it by the folder, which is that of
    the stage or of its folds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = folder / "tokenizer"
        self.corpus_tokens = folder / "tokens.npz"
        self.demonstration_tokens = folder / "demonstrations.npz"
        self.ranking_tokens = folder / "rankings.npz"


class RunPaths:
    """Paths of the run directory `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = root / "layout.json"
        self.config = root / "config.yaml"
        self.lock = root / "lock"
        self.session = root / "session.json"
        self.mirror = root / "mirror.json"
        self.logs = root / "logs"
        self.metrics = root / "metrics.jsonl"
        self.lineage = root / "lineage.jsonl"
        self.failures = root / "failures.jsonl"
        self.timings = root / "timings.json"
        self.scale = root / "scale.json"
        self.report = root / "report.html"
        self.judge_answers = root / "judge_answers.db"
        self.weights = root / "weights"
        self.wandb = root / "wandb"
        self.quickstart_data = root / "data"
        self.quickstart_config = self.quickstart_data / "quickstart.json"
        # Serving.
        self.versions = root / "versions"
        self.current = root / "current.json"
        self.promotions = root / "promotions.jsonl"
        self.promotions_lock = root / "promotions.lock"
        self.endpoint = root / "endpoint.json"
        self.feedback = root / "feedback"
        self.feedback_rankings = self.feedback / "rankings.jsonl"
        self.feedback_other = self.feedback / "other.jsonl"
        # Labelling by people.
        self.label = root / "label"
        self.label_database = self.label / "label.db"
        self.label_settings = self.label / "settings.yaml"
        self.label_exports = self.label / "exports"
        # Rounds of labels, reward model and policy.
        self.rounds = root / "rounds"
        self.rounds_log = self.rounds / "rounds.jsonl"
        self.rounds_lock = self.rounds / "lock"
        self.rounds_base = root / "rounds.yaml"
        self.stop = root / "stop.json"
        # Stages, in their order.
        self.tokenizer = TrainingInputPaths(root / "pretrain").tokenizer
        self.corpus_tokens = TrainingInputPaths(root / "pretrain").corpus_tokens
        self.demonstration_tokens = TrainingInputPaths(root / "sft").demonstration_tokens
        self.responses = root / "collect" / "responses.jsonl"
        self.rankings = root / "collect" / "rankings.jsonl"
        self.sampled = root / "sample" / "responses.jsonl"
        self.sampled_features = root / "sample" / "features.npz"
        self.ranking_tokens = TrainingInputPaths(root / "reward").ranking_tokens
        self.reward_accuracy = root / "reward" / "accuracy.json"
        self.reward_accuracy_inputs = root / "reward" / "accuracy"
        self.folds = root / "reward" / "folds"
        self.fold_counts = self.folds / "counts.json"
        self.fold_rankings = TrainingInputPaths(self.folds).ranking_tokens
        self.chosen = root / "best_of_n" / "chosen.jsonl"
        self.best_of_n_progress = root / "best_of_n" / "progress.json"
        self.dpo_reference = root / "dpo" / "reference.npy"
        self.alarms = self.stage("ppo").alarms
        self.batches = self.stage("ppo").batches
        self.samples = self.stage("ppo").samples
        self.quarantine = self.stage("ppo").quarantine
        self.best_of_n = root / "ppo" / "best_of_n.json"
        self.ppo_export = root / "ppo" / "export"
        self.evaluation = root / "evaluate" / "results.json"
        self.answers = root / "evaluate" / "answers.jsonl"

    def round(self, number: int) -> RoundPaths:
        """Paths of one round, counted from 1."""
        return RoundPaths(self.rounds / f"{number:03d}")

    def started_rounds(self) -> list[RoundPaths]:
        """The rounds that have a state, the first one first."""
        return [RoundPaths(state.parent) for state in sorted(self.rounds.glob("*/round.json"))]

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

    def check_layout(self) -> None:
        """Raises UserError for a run directory that an older version of this program wrote."""
        # A model folder is no run, whatever else its author put into it.
        if (self.root / "config.json").exists() or not self.config.exists():
            return
        if (read_json(self.layout) or {}).get("version") != LAYOUT:
            raise UserError(
                f"{self.root}: this run directory has the layout of an older version and cannot be "
                "continued, served or reported; choose another run_dir (its STAGE/model folders are plain "
                "Hugging Face models and stay usable by path)"
            )

    def write_layout(self) -> None:
        """Also where relative paths of config.yaml start, and where the modules that it names are."""
        folder = os.environ.get(WORKING_DIRECTORY) or os.getcwd()
        write_json(self.layout, {"version": LAYOUT, "started_in": folder})

    def started_in(self) -> Path:
        """Where the run was started last."""
        return Path((read_json(self.layout) or {}).get("started_in", "."))


def stalled_key(number: int, state: str | None) -> str:
    """Key of the line of `rounds_log` that says that a round has waited past its deadline in this state."""
    return f"{number}:{state}:stalled"


class RoundPaths(RunPaths):
    """Paths of one round, which is a run directory of its own, RUN/rounds/001."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.state = root / "round.json"
        self.plan = root / "plan.yaml"
        # What people decided while it was at work.
        self.hold_request = root / "hold.json"
        # Prompts of the round, by their use.
        self.candidates = root / "candidates.jsonl"
        self.training_prompts = root / "training.jsonl"
        self.comparison_prompts = root / "comparison.jsonl"
        # What people were asked and what they said.
        self.items = root / "items.jsonl"
        self.round_rankings = root / "rankings.jsonl"
        self.public_rankings = root / "public.jsonl"
        self.comparison_items = root / "comparison_items.jsonl"
        self.comparisons = root / "comparisons.jsonl"

    def close_request(self, state: str) -> Path:
        """An owner's wish to end the waiting for labels in this state."""
        return self.root / f"close-{state}.json"
