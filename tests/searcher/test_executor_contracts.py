import pytest

from pruneaug.searcher.executors.local import Local
from pruneaug.searcher.executors.processes import Processes
from pruneaug.testing.executors import ExecutorContract


class TestLocal(ExecutorContract):
    def make(self):
        return Local()


class TestProcesses(ExecutorContract):
    def make(self):
        return Processes()


@pytest.mark.slow
@pytest.mark.usefixtures("running_ray")
class TestRay(ExecutorContract):
    def make(self):
        from pruneaug.searcher.executors.ray_tune import RayTune

        return RayTune(cpus=1)
