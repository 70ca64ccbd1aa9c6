"""Throughput of episodes whose environment takes its time, against the ideal.

    python -m bench.episodes [episodes] [turns]

One rollout actor on CPU with a small model of random weights; its environment sleeps in every step: not at
all, 5 ms, 500 ms, or long-tailed (log-normal with median 50 ms and sigma 1.5, the same for the same seed and
turn). All episodes are begun at once, and all steps may run at the same time (environment.threads). Counted
from the first reset to the last result, after one round that is not.

The ideal is a bound that no system could be under: the longer of what the engine takes without any latency,
and of the longest sum of latencies of one episode. Random weights hardly write an end token, so the last
token of each turn becomes one before the environment sees it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Text

from actors.config import Decoding, RolloutConfig
from actors.environments.config import EnvironmentConfig, EnvironmentSetup
from actors.prompt_group import PromptGroup
from bench.common import print_header, print_row, start_parser
from learners.config import ModelConfig
from learners.data.tokenizer import train_tokenizer
from learners.models import build_policy

MODEL = ModelConfig(layers=2, width=256, heads=8, kv_heads=4, vocab_size=512, context=512)
TEXTS = ["The number is 42, and the next one is 17.", "Ask again, or give the answer."] * 20
LATENCIES = ("none", "5 ms", "500 ms", "long tail")
TURN_TOKENS = 16
ROUNDS = 3


def latencies(kind: str, seed: int, turns: int) -> np.ndarray:
    """Seconds that the steps of an episode take."""
    if kind == "long tail":
        return np.random.default_rng(seed).lognormal(np.log(0.05), 1.5, turns)
    return np.full(turns, {"none": 0.0, "5 ms": 0.005, "500 ms": 0.5}[kind])


class Sleeper(gymnasium.Env[str, str]):
    """Answers after a while."""

    observation_space = Text(1000)
    action_space = Text(1000)

    def __init__(self, kind: str, turns: int) -> None:
        self._kind, self._turns = kind, turns

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self._sleeps = latencies(self._kind, seed or 0, self._turns)
        self._turn = 0
        return "The number is 42.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self._sleeps[self._turn])
        self._turn += 1
        return "Ask again.", 0.0, self._turn == self._turns, False, {}


def measure(kind: str, episodes: int, turns: int, folder: Path) -> list[float]:
    """Seconds of each round."""
    from actors.episode_rollout import EpisodeRolloutActor

    environment = EnvironmentConfig(
        name="bench.episodes:Sleeper",
        kwargs={"kind": kind, "turns": turns},
        turns=turns,
        tokens=460,
        workers=2,
        threads=-(-episodes // 2),
    )
    config = RolloutConfig(dtype="float32", max_sequences=256, max_model_len=512)
    actor = EpisodeRolloutActor("bench", str(folder), config, EnvironmentSetup(environment, MODEL))
    end_token = actor.engine.llm.llm_engine.model_config.hf_config.eos_token_id
    _end_every_turn(actor, end_token)
    groups = [
        PromptGroup(index, index, [10], [index], None, environment_seed=index) for index in range(episodes)
    ]
    seconds = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        samples = actor.run_episodes(groups, Decoding(max_tokens=TURN_TOKENS), end_token)
        seconds.append(time.perf_counter() - started)
        assert samples.episodes is not None
        assert (samples.episodes.turns_B == turns).all()
    actor.pool.close()
    return seconds[1:]


def _end_every_turn(actor: Any, end_token: int) -> None:
    take = actor.engine.take

    def ending(request_ids: list[str]) -> list[Any]:
        outputs: list[Any] = take(request_ids)
        for output in outputs:
            completion = output.outputs[0]
            completion.token_ids = [*completion.token_ids[:-1], end_token]
        return outputs

    actor.engine.take = ending


def main() -> None:
    parser = start_parser(__doc__)
    parser.add_argument("episodes", type=int, nargs="?", default=64)
    parser.add_argument("turns", type=int, nargs="?", default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(TEXTS, 512)
        build_policy(MODEL, tokenizer, seed=0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print_header(["latency", "seconds", "episodes/s", "ideal seconds", "ideal / measured"])
        engine_s = 0.0
        for kind in LATENCIES:
            seconds = statistics.median(measure(kind, arguments.episodes, arguments.turns, Path(folder)))
            if kind == "none":
                engine_s = seconds
            sums = [latencies(kind, seed, arguments.turns).sum() for seed in range(arguments.episodes)]
            ideal = max(engine_s, float(max(sums)))
            rate = arguments.episodes / seconds
            cells = (kind, f"{seconds:.2f}", f"{rate:.1f}", f"{ideal:.2f}", f"{ideal / seconds:.2f}")
            print_row(cells)


if __name__ == "__main__":
    main()
