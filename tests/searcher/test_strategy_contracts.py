"""Every built-in strategy keeps the contract."""

import pytest

from pruneaug.searcher.strategies.allocate import Allocate
from pruneaug.searcher.strategies.greedy import Greedy
from pruneaug.searcher.strategies.nsga2 import Nsga2
from pruneaug.searcher.strategies.rule import Rule
from pruneaug.testing.contracts import StrategyContract


class TestAllocate(StrategyContract):
    def make(self):
        return Allocate()


class TestNsga2(StrategyContract):
    def make(self):
        return Nsga2(population=4)


class TestGreedy(StrategyContract):
    def make(self):
        return Greedy()

    @pytest.mark.skip("draws nothing at random")
    def test_another_seed_gives_other_proposals(self):
        pass


class TestRule(StrategyContract):
    def make(self):
        return Rule(sparsity=0.7)

    @pytest.mark.skip("draws nothing at random")
    def test_another_seed_gives_other_proposals(self):
        pass
