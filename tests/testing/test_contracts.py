from pruneaug.pruners.magnitude import Magnitude
from pruneaug.searcher.strategies.joint import Joint
from pruneaug.searcher.strategies.random import Random
from pruneaug.searcher.strategies.uniform import Uniform
from pruneaug.testing.contracts import PrunerContract, StrategyContract, TaskContract
from pruneaug.testing.task import ToyTask


class TestMagnitude(PrunerContract):
    def make(self):
        return Magnitude()


class TestMagnitudeWithAbsoluteValues(PrunerContract):
    def make(self):
        return Magnitude(power=1)


class TestToyMlp(TaskContract):
    def make(self):
        return ToyTask("mlp")


class TestToyCnn(TaskContract):
    def make(self):
        return ToyTask("cnn")


class TestJoint(StrategyContract):
    def make(self):
        return Joint(startup_trials=4)


class TestUniform(StrategyContract):
    def make(self):
        return Uniform(startup_trials=4)


class TestRandom(StrategyContract):
    def make(self):
        return Random()
