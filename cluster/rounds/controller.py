"""`hero rounds CONFIG`: runs the rounds of a run one transition after the other, and waits for people.

    planned ─► sampled ─► labeling ─► closed ─► rewarded ─► trained ─► judged ─► promoted | held
    prompts    responses  people      rankings  reward      PPO        blind      gate, canary,
    by use     of two     rank        of the    model on    from the   compari-   pointer
               policies               round     all rounds  SFT model  sons

A transition reads what is complete on disk, writes what it makes, and then moves the state (`state.py`).
Killed anywhere, the same command goes on with the same transition. Stages run as `hero run` in a process of
their own, which ends before people are waited for: nothing then holds Ray, a GPU, or the memory of torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.config import RunConfig
from cluster.function_checks import check_round_judge
from cluster.precision import resolve
from cluster.rounds import evidence, labels
from cluster.rounds.judge import judged, split_comparisons
from cluster.rounds.judgement import ask_people, comparison_items, decide_round, judged_figures
from cluster.rounds.labelling import close_labels, open_labels, records_of
from cluster.rounds.plan import SAMPLING, round_config
from cluster.rounds.planning import base_policy, check_prompts, check_settings, plan_round, served_policy
from cluster.rounds.selection_gain import selection_gain
from cluster.rounds.simulated import work, worth_of
from cluster.rounds.state import RoundState, file_digest, log
from cluster.run.directory import RunDirectory
from cluster.run.mirror import Mirror, mirrored
from common.files import read_json, read_jsonl, try_lock, write_text
from common.run_paths import RunPaths, stalled_key
from common.stop_request import check_stop
from label.workplace import Workplace, read_settings

POLL_S = 10.0
COPY_S = 600.0
"""Between copies to cluster.mirror while people label."""
LOCKED = "another `hero rounds` is at work in this directory; wait for it or stop it"

Row = dict[str, Any]
RunStages = Callable[[Path, str], None]
"""(config file, last stage) -> runs the stages up to it; raises HeroError."""


class Waiting(Exception):
    """People have to label first; says what is missing."""


class Rounds:
    """The rounds of one run, under its lock."""

    def __init__(
        self, config: RunConfig, run_stages: RunStages, tell: Callable[[str], None], wait: bool = True
    ) -> None:
        self.config, self.run_stages, self.tell, self.wait = config, run_stages, tell, wait
        self.run = RunPaths(config.directory)
        self.mirror: Mirror | None = None
        self.copied = 0.0
        self.steps: dict[str | None, Callable[[RoundState], None]] = {
            None: self._plan,
            "planned": self._sample,
            "sampled": self._open,
            "labeling": self._close,
            "closed": self._reward,
            "rewarded": self._train,
            "trained": self._judge,
            "judged": self._decide,
        }

    def go(self, until: int | None = None) -> None:
        """Runs rounds up to `until`, or all. Raises Waiting if people have to label first and `wait` is
        False, and the errors of `common.errors`."""
        self.run.rounds.mkdir(parents=True, exist_ok=True)
        with (
            try_lock(self.run.rounds_lock, f"{self.run.root}: {LOCKED}"),
            mirrored(self.config.cluster.mirror, self.run.root, self.tell) as self.mirror,
        ):
            self._check_stop()
            check_prompts(self.config)
            check_round_judge(self.config)
            self._base()
            last = min(until or self.config.rounds.count, self.config.rounds.count)
            for number in range(1, last + 1):
                state = RoundState(self.run, number)
                check_settings(self.config, state)
                while not state.is_final:
                    self.steps[state.state](state)
                    self._copy()
                    self.tell(f"round {number}: {state.state}")
                    self._check_stop()

    def _copy(self) -> None:
        """To cluster.mirror, if there is one."""
        self.copied = time.monotonic()
        if self.mirror:
            self.mirror.snapshot()

    def _check_stop(self) -> None:
        check_stop(self.run, f"`hero rounds resume {self.run.root}` lets it go on")

    def _base(self) -> None:
        """The stages before the rounds: pretraining and SFT, as far as the config has them."""
        directory = RunDirectory(self.config)
        before = [stage for stage in self.config.stages if stage in ("pretrain", "sft")]
        directory.paths.check_layout()
        # A finished stage has recorded what dtype auto was resolved to.
        RunDirectory(resolve(self.config)[0]).check_inputs()
        if before and not all(directory.done(stage) for stage in before):
            self.run_stages(self._write(self.run.rounds_base, self.config), before[-1])
        elif not self.run.config.exists():
            directory.open()
            directory.close()

    def _plan(self, state: RoundState) -> None:
        figures = plan_round(self.config, state)
        state.advance("planned", {}, figures)

    def _sample(self, state: RoundState) -> None:
        self.run_stages(self._plan_file(state, ()), SAMPLING[0])
        state.advance("sampled", {"responses": file_digest(state.paths.sampled)}, {})

    def _open(self, state: RoundState) -> None:
        state.check("responses", file_digest(state.paths.sampled))
        place = self._workplace()
        try:
            figures = open_labels(self.config, state, place)
        finally:
            place.database.close()
        state.advance("labeling", {"items": file_digest(state.paths.items)}, figures)

    def _close(self, state: RoundState) -> None:
        place = self._workplace()
        try:
            self._wait_for(state, place, labels.batch_names(state.number), read_jsonl(state.paths.items))
            figures = close_labels(self.config, state, place)
        finally:
            place.database.close()
        state.advance("closed", {"rankings": file_digest(state.paths.round_rankings)}, figures)

    def _reward(self, state: RoundState) -> None:
        state.check("rankings", file_digest(state.paths.round_rankings))
        self.run_stages(self._plan_file(state, self._rankings(state)), "reward")
        state.advance("rewarded", {}, {**evidence.reward_figures(state), **selection_gain(state)})

    def _train(self, state: RoundState) -> None:
        self.run_stages(self._plan_file(state, self._rankings(state)), "evaluate")
        inputs = {"answers": file_digest(state.paths.answers)}
        state.advance("trained", inputs, evidence.training_figures(state, self.config))

    def _judge(self, state: RoundState) -> None:
        state.check("answers", file_digest(state.paths.answers))
        gate, anchor = comparison_items(state)
        judge = self.config.rounds.judge
        if judge:
            self.tell(
                f"round {state.number}: {judge.name} compares {len(gate) + len(anchor)} pairs of answers"
            )
            found = split_comparisons(judged(judge, state, [*gate, *anchor]), state.values["served"])
        else:
            found = self._people(state, gate, anchor)
        figures = judged_figures(state, *found, has_flags=judge is None)
        state.advance("judged", {"comparisons": file_digest(state.paths.comparisons)}, figures)

    def _people(self, state: RoundState, gate: list[Row], anchor: list[Row]) -> tuple[list[Row], list[Row]]:
        place = self._workplace()
        try:
            ask_people(state, place, gate, anchor)
            self._wait_for(state, place, labels.comparison_names(state.number), [*gate, *anchor])
            return labels.comparisons(place, state.number)
        finally:
            place.database.close()

    def _decide(self, state: RoundState) -> None:
        outcome, figures = decide_round(state)
        state.advance(outcome, {}, figures)

    def _wait_for(
        self, state: RoundState, place: Workplace, names: Sequence[str], records: Sequence[Row]
    ) -> None:
        """Until the batches have their labels, are closed by an owner, or their deadline has passed with
        enough of them; then closes them."""
        told: tuple[int, bool] | None = None
        while True:
            self._check_stop()
            if time.monotonic() > self.copied + COPY_S:
                self._copy()
            progress = labels.progress(place, names)
            if progress.complete or progress.closed or self._may_close(state, progress):
                labels.close(place, names)
                return
            message = self._message(state, progress)
            # Not with every label: this goes on for days.
            step = (int(20 * progress.share), self._is_late(state))
            if step != told:
                self.tell(message)
                told = step
            if self.config.rounds.labelers:
                worth = worth_of(records, records_of(self.config))
                work(
                    place,
                    self.config,
                    state.number,
                    worth,
                    lambda: labels.progress(place, names).complete,
                )
            elif not self.wait:
                self._copy()
                raise Waiting(message)
            else:
                time.sleep(POLL_S)

    def _may_close(self, state: RoundState, progress: labels.Progress) -> bool:
        if progress.labels and read_json(state.paths.close_request(state.state or "")):
            return True
        return self._is_late(state) and progress.share >= self.config.rounds.min_share

    def _is_late(self, state: RoundState) -> bool:
        hours = self.config.rounds.deadline_h
        if hours is None:
            return False
        opened = [row["time"] for row in read_jsonl(self.run.rounds_log) if row["key"] == self._since(state)]
        return bool(opened) and time.time() > opened[-1] + 3600 * hours

    def _since(self, state: RoundState) -> str:
        return f"{state.number}:{state.state}"

    def _message(self, state: RoundState, progress: labels.Progress) -> str:
        what = "rankings" if state.state == "labeling" else "blind comparisons"
        text = f"round {state.number}: {progress.labels} of {progress.wanted} {what}"
        if self._is_late(state):
            log(self.run, stalled_key(state.number, state.state), round=state.number, state="stalled")
            least = self.config.rounds.min_share
            text += f"; stalled: the deadline has passed with less than {least:.0%} of them"
        if self.config.rounds.labelers:
            return f"{text}; {self.config.rounds.labelers} simulated people label"
        return f"{text}; people label on `hero label serve {self.run.root}`"

    def _workplace(self) -> Workplace:
        return Workplace(self.run.root, read_settings(self.run.root))

    def _rankings(self, state: RoundState) -> list[Path]:
        """The rankings of this round and of all before it, and with rounds.public those of users."""
        files = [self.run.round(number).round_rankings for number in range(1, state.number + 1)]
        if state.paths.public_rankings.exists():
            files.append(state.paths.public_rankings)
        return files

    def _plan_file(self, state: RoundState, rankings: Sequence[Path]) -> Path:
        first = base_policy(self.config)
        served = served_policy(self.run, state.values["served"], first)
        return self._write(state.paths.plan, round_config(self.config, state.number, first, served, rankings))

    def _write(self, path: Path, config: RunConfig) -> Path:
        write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        return path
