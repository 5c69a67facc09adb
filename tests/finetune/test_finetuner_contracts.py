import pytest

from pruneaug.finetune import FINETUNERS
from pruneaug.finetune.rewind import Rewind
from pruneaug.finetune.train import Train
from pruneaug.testing.contracts import FineTunerContract, ResumableContract


class TestTrain(ResumableContract):
    def make(self):
        return Train()


class TestRewindOfTheLearningRate(ResumableContract):
    def make(self):
        return Rewind()


class TestRewindOfWeights(ResumableContract):
    def make(self):
        return Rewind("weights", start=0.5)


class TestPlainFunction(FineTunerContract):
    def make(self):
        return FINETUNERS.create("training_loops:plain", {"lr": 0.05})


class TestAccelerate(FineTunerContract):
    def make(self):
        pytest.importorskip("accelerate")
        return FINETUNERS.create("accelerate", {"function": "training_loops:accelerated"})


class TestLightning(FineTunerContract):
    def make(self):
        pytest.importorskip("lightning")
        return FINETUNERS.create("lightning", {"module": "training_loops:lit"})
