import os
from pathlib import Path

import pytest

# Ray reads these once in a process, so they must be the same for all tests that use it.
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")


def _python_path():
    """What workers need to import: the modules of this folder, and what this process was told of."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))


@pytest.fixture(scope="module")
def running_ray():
    """Ray on this machine, with the modules of this folder; executors that find it leave it running."""
    ray = pytest.importorskip("ray")
    environment = {"env_vars": {"PYTHONPATH": _python_path()}}
    # "local": another test process may have a cluster of its own, which Ray would find.
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.fixture
def two_nodes(monkeypatch):
    """A Ray cluster on this machine, and the one of its two nodes that may be lost: it has two CPUs, the head one."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    ray.shutdown()  # whatever earlier tests left
    monkeypatch.setenv("PYTHONPATH", _python_path())
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield cluster, node
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def stored_at_each_step(monkeypatch):
    """Trainings in this process are stored after every step, not once a minute."""
    monkeypatch.setattr("pruneaug.finetune.rungs._STORE_EVERY_S", 0.0)
    monkeypatch.setattr("pruneaug.finetune.rungs._STORE_SHARE", float("inf"))
