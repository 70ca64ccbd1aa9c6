"""From the name of an environment in the config to a function that makes one.

Runs in the worker process, where the user's module is imported: an environment that hangs or crashes on
import does not take the engine with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium

from common.errors import UserError
from common.plugins import describe_error, import_user_module

Creator = Callable[[], gymnasium.Env[Any, Any]]

KEY = "environment.name"


def load_environment(name: str, kwargs: Mapping[str, Any], registered: bytes | None = None) -> Creator:
    """A function that makes the environment. `registered` is the pickled creator that the driver found
    under the name in Ray's registry. Raises UserError if there is no such environment, or it cannot be
    imported."""
    if registered is not None:
        import ray.cloudpickle

        return partial(ray.cloudpickle.loads(registered), dict(kwargs))
    module_name, _, attribute = name.rpartition(":")
    if module_name:
        module = import_user_module(module_name, f"{KEY}={name}")
        if hasattr(module, attribute):
            return partial(getattr(module, attribute), **kwargs)
        name = attribute
    creator = _from_registries(name, kwargs)
    if creator is not None:
        return creator
    if module_name:
        raise UserError(
            f"{KEY}={module_name}:{name}: the module has no {name} and registers no environment of that name"
        )
    raise UserError(
        f"{KEY}={name}: neither Ray's registry nor Gymnasium's has it; give module:NAME, where the module "
        "has a gymnasium.Env of that name or registers one"
    )


def _from_registries(name: str, kwargs: Mapping[str, Any]) -> Creator | None:
    # Not imported without need, as it takes seconds: a module that registers there has imported it.
    if "ray.tune.registry" in sys.modules:
        from ray.tune.registry import ENV_CREATOR, _global_registry

        if _global_registry.contains(ENV_CREATOR, name):
            return partial(_global_registry.get(ENV_CREATOR, name), dict(kwargs))
    if name in gymnasium.registry:
        # Checks of shapes and dtypes are for arrays, and would warn of every text.
        return partial(gymnasium.make, name, disable_env_checker=True, **kwargs)
    return None


def registered_creator(name: str) -> bytes | None:
    """The pickled creator that a program of the Ray cluster stored under a name with
    `ray.tune.registry.register_env`; None if there is none. For the driver: workers are not connected to
    Ray."""
    import ray.cloudpickle
    from ray.tune.registry import ENV_CREATOR, _global_registry

    if not _global_registry.contains(ENV_CREATOR, name):
        return None
    creator: bytes = ray.cloudpickle.dumps(_global_registry.get(ENV_CREATOR, name))
    return creator


def make(creator: Creator, name: str) -> gymnasium.Env[Any, Any]:
    """A new environment. Raises UserError if the creator fails or makes something else."""
    try:
        environment = creator()
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{KEY}={name}: it cannot be made: {describe_error(error)}") from error
    if not (hasattr(environment, "reset") and hasattr(environment, "step")):
        raise UserError(
            f"{KEY}={name}: made {type(environment).__name__}, which has no reset and step; expected a "
            "gymnasium.Env"
        )
    return environment
