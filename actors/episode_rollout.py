"""A rollout actor whose groups are episodes of an environment instead of single responses.

The scheduler sees no difference: groups are begun, finished and dropped as in `actors.rollout`. Calls of
`generate` without rows sample single responses, as the stages before PPO need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.config import Decoding, EngineDevices, RolloutConfig
from actors.environments.config import EnvironmentSetup
from actors.environments.pool import EnvironmentPool
from actors.environments.record import samples_of
from actors.environments.runner import Episode, EpisodeRunner
from actors.prompt_group import PromptGroup
from actors.rollout import InFlightGroup, RolloutActor
from learners.data.samples import Samples
from learners.data.tokenizer_loading import load_tokenizer


@dataclass
class EpisodeGroup(InFlightGroup):
    """The episodes of one prompt."""

    episodes: Sequence[Episode] = ()


class EpisodeRolloutActor(RolloutActor):
    """A vLLM engine with environments beside it."""

    def __init__(
        self,
        name: str,
        model_path: str,
        config: RolloutConfig,
        environment: EnvironmentSetup,
        seed: int = 0,
        version: int = 0,
        devices: EngineDevices | None = None,
    ) -> None:
        """Raises UserError if the environment cannot be loaded, or its tool parser does not fit."""
        # Their imports run while the engine loads.
        self.pool = EnvironmentPool(environment.config, environment.registered)
        super().__init__(name, model_path, config, seed, version, devices)
        self.pool.wait_ready()
        tokenizer = load_tokenizer(model_path, environment.model)
        self.runner = EpisodeRunner(self.engine, self.pool, tokenizer, environment.config, version)

    def ready(self) -> dict[str, Any]:
        return {**super().ready(), "environment_workers": self.pool.pids}

    def run_episodes(self, groups: Sequence[PromptGroup], decoding: Decoding, end_token: int) -> Samples:
        """All episodes of these groups, group by group: for evaluation. Groups in flight advance
        meanwhile."""
        begun = [self._begin(group, decoding, end_token) for group in groups]
        while not all(self._is_finished(group) for group in begun):
            self._step()
        return samples_of([episode.record for group in begun for episode in group.episodes])

    def _begin(self, group: PromptGroup, decoding: Decoding, end_token: int) -> EpisodeGroup:
        episodes = [
            self.runner.begin(
                group.prompt_id, group.tokens, group.row, group.environment_seed, seed, decoding, end_token
            )
            for seed in group.seeds
        ]
        return EpisodeGroup(group.prompt_id, self.version, [], episodes)

    def _step(self) -> None:
        self.runner.work()

    def _is_finished(self, group: InFlightGroup) -> bool:
        assert isinstance(group, EpisodeGroup)
        return all(episode.is_over for episode in group.episodes)

    def _take_samples(self, indices: Sequence[int], end_token: int) -> Samples:
        records = []
        for index in indices:
            group = self._groups.pop(index)
            assert isinstance(group, EpisodeGroup)
            records += [episode.record for episode in group.episodes]
        return samples_of(records)

    def _remove(self, group: InFlightGroup) -> None:
        assert isinstance(group, EpisodeGroup)
        self.runner.drop(group.episodes)
