import os
from pathlib import Path

import pytest

# Ray reads these once in a process, so they must be the same for all tests that use it.
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")


@pytest.fixture(scope="module")
def running_ray():
    """Ray on this machine, with the modules of this folder; executors that find it leave it running."""
    ray = pytest.importorskip("ray")
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    # "local": another test process may have a cluster of its own, which Ray would find.
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()
