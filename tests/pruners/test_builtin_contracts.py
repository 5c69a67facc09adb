"""Every built-in pruner keeps the contract, by its own scope and by one threshold over all layers."""

from pruneaug.pruners import PRUNERS
from pruneaug.testing.contracts import PrunerContract


def contract(name: str, **options: object) -> type[PrunerContract]:
    return type(name, (PrunerContract,), {"make": lambda self: PRUNERS.create(name, options)})


TestMagnitude = contract("magnitude")
TestMagnitudeGlobal = contract("magnitude", scope="global", power=1)
TestLamp = contract("lamp")
TestRandom = contract("random")
TestRandomGlobal = contract("random", scope="global")
TestSnip = contract("snip")
TestSnipGlobal = contract("snip", scope="global")
TestGrasp = contract("grasp")
TestGraspGlobal = contract("grasp", scope="global")
TestSynFlow = contract("synflow", iterations=10)
TestSynFlowGlobal = contract("synflow", scope="global", iterations=10)
TestTaylor = contract("taylor")
TestTaylorGlobal = contract("taylor", scope="global", power=2)
TestFisher = contract("fisher", samples=16)
TestFisherGlobal = contract("fisher", scope="global", samples=16)
TestWanda = contract("wanda")
TestWandaLayer = contract("wanda", scope="layer")
TestSparseGPT = contract("sparsegpt")
TestSparseGPTRefit = contract("sparsegpt", refit=True)
TestMovement = contract("movement")
TestMovementGlobal = contract("movement", scope="global")
TestGradual = contract("gradual")
TestGradualTaylor = contract("gradual", pruner="taylor", options={"scope": "global"}, begin=0.2, end=0.5, initial=0.3)
TestGradualSparseGPT = contract("gradual", pruner="sparsegpt", steps=3)


def test_no_built_in_is_without_a_contract() -> None:
    tested = {cls.__name__ for cls in PrunerContract.__subclasses__()}
    assert set(PRUNERS.names()) <= tested
