"""Environments that tests name in their configs: good ones, and one for each way to go wrong."""

import os
import time

import gymnasium
from gymnasium.spaces import Text

from actors.environments.messages import Messages


class Countdown(gymnasium.Env):
    """Says how many turns are left, and gives 1 for each; `row["fault"]` makes one turn go wrong."""

    observation_space = Text(1000)
    action_space = Text(1000)

    def __init__(self, turns=3, step_s=0.0):
        self.turns, self.step_s = turns, step_s

    def reset(self, *, seed=None, options=None):
        self.row = (options or {}).get("row") or {}
        self.seed, self.left = seed, self.turns
        self._go_wrong("reset")
        return f"seed {seed}, {self.left} left", {}

    def step(self, action):
        time.sleep(self.step_s)
        self.left -= 1
        if self.left == self.turns - 2:
            result = self._go_wrong("step")
            if result is not None:
                return result
        return f"{len(action)} characters, {self.left} left", 1.0, self.left == 0, False, {"left": self.left}

    def _go_wrong(self, where):
        fault = self.row.get("fault")
        if fault == f"hang in {where}":
            time.sleep(1000)
        elif fault == f"die in {where}":
            os._exit(7)
        elif fault == f"raise in {where}":
            raise RuntimeError("the room has no door")
        elif fault == f"leave in {where}":
            raise SystemExit(3)
        elif fault == "die once":
            if not os.path.exists(self.row["flag"]):
                open(self.row["flag"], "w").close()
                os._exit(7)
        elif fault and where == "step":
            return {
                "no tuple": "nonsense",
                "reward nan": ("", float("nan"), False, False, {}),
                "observation number": (17, 0.0, False, False, {}),
                "unpicklable": ("", 0.0, False, False, {}),
            }.get(fault)
        return None


class Forgetful(Countdown):
    """Every process gives other observations."""

    def step(self, action):
        observation, *rest = super().step(action)
        return f"{observation} {os.getpid()}", *rest


class Echo(gymnasium.Env):
    """Takes messages, and gives back what it got."""

    action_space = Messages()

    def reset(self, *, seed=None, options=None):
        return [{"role": "system", "content": "Echo."}, {"role": "user", "content": "Go"}], {}

    def step(self, action):
        return [{"role": "user", "content": action["content"]}], 0.0, False, False, {}


def broken():
    raise RuntimeError("no licence")


def not_an_environment():
    return 3


class OneTurn(gymnasium.Env):
    """The prompt of the row, one answer, no reward: what a run without an environment does."""

    observation_space = Text(10_000)
    action_space = Text(10_000)

    def reset(self, *, seed=None, options=None):
        return options["row"]["prompt"], {}

    def step(self, action):
        return "", 0.0, True, False, {}
