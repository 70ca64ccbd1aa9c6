"""Fixtures of the tests that need a GPU. All of them have the marker `gpu`; `make test-gpu` runs them.

Whatever holds memory of the GPU is a process of its own, so that it is free again for the next test.
"""

import pytest

from bench.bringup_workload import Workload, build_model


@pytest.fixture(scope="session")
def workload(tmp_path_factory):
    """A model in the sizes of Qwen2.5-0.5B with random weights, and where the steps leave their files."""
    settings = Workload(device="cuda", tiny=False, folder=tmp_path_factory.mktemp("gpu"))
    build_model(settings)
    return settings
