from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pruneaug.errors import NetworkError, SpecError
from pruneaug.finetune.protocol import DenseTraining, Rewinder, Rung, Rungs, accepts
from pruneaug.finetune.rewind import Rewind
from pruneaug.finetune.train import Train
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec

DENSE = TrainSpec(epochs=10, batch_size=16, learning_rate=0.05, warmup=0.1)
MASK = torch.rand(2, 128, generator=torch.Generator().manual_seed(5)) > 0.5


def rates(finetuner: Any, task: Any, spec: TrainSpec, pruned: Pruned | None = None, **options: Any) -> list[float]:
    """The learning rate of each step."""
    found: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: found.append(optimizer.param_groups[0]["lr"]))
    try:
        finetuner.finetune(task.build_model(), pruned, task, spec, seed=0, **options)
    finally:
        hook.remove()
    return found


def test_the_rate_is_that_of_the_dense_training_s_last_epochs(task: Any) -> None:
    dense = rates(Train(), task, DENSE)
    spec = TrainSpec(epochs=4, batch_size=16, learning_rate=7.0, warmup=0.9)  # neither of these is looked at
    found = rates(Rewind(), task, spec, Pruned({}), dense=DenseTraining(DENSE))
    assert found == pytest.approx(dense[-24:])


def test_going_all_the_way_back_repeats_the_warm_up(task: Any) -> None:
    spec = TrainSpec(epochs=10, batch_size=16)
    assert rates(Rewind(), task, spec, Pruned({}), dense=DenseTraining(DENSE)) == pytest.approx(
        rates(Train(), task, DENSE)
    )


def test_the_rest_of_the_schedule_is_squeezed_into_a_shorter_training(task: Any) -> None:
    dense = rates(Train(), task, DENSE)  # 60 steps
    found = rates(Rewind(start=0.5), task, TrainSpec(epochs=1, batch_size=16), Pruned({}), dense=DenseTraining(DENSE))
    assert found == pytest.approx(dense[30::5])


def test_weights_are_those_of_the_early_network_under_the_masks_of_the_late_one(task: Any) -> None:
    kept: dict[str, torch.Tensor] = {}

    def keep(rung: Rung) -> bool:
        kept.update({name: value.clone() for name, value in rung.model.state_dict().items()})
        return True

    finetuner = Rewind("weights", start=0.5)
    assert isinstance(finetuner, Rewinder)
    assert finetuner.early_fraction == 0.5
    model = task.build_model()
    finetuner.finetune(model, None, task, DENSE, seed=0, rungs=Rungs((0.5 * DENSE.epochs,), keep))
    assert set(kept) == set(model.state_dict())
    begun: dict[str, torch.Tensor] = {}

    def look(*_: Any) -> None:
        begun.update({name: value.detach().clone() for name, value in model.named_parameters()})
        hook.remove()

    hook = register_optimizer_step_pre_hook(look)
    dense = DenseTraining(DENSE, kept)
    result = finetuner.finetune(
        model, Pruned({"7": MASK}), task, TrainSpec(epochs=5, batch_size=16), seed=1, dense=dense
    )
    assert torch.equal(begun["7.weight"], kept["7.weight"] * MASK)
    assert torch.equal(begun["3.weight"], kept["3.weight"])
    assert result.steps == 30
    assert task.evaluate(model, "validation") > 0.9


def test_the_dense_network_itself_is_trained_plainly(task: Any) -> None:
    assert rates(Rewind("weights"), task, DENSE) == rates(Train(), task, DENSE)


def test_early_weights_may_come_from_a_file(task: Any, tmp_path: Path) -> None:
    path = tmp_path / "early.safetensors"
    save_file(task.build_model().state_dict(), path)
    finetuner = Rewind("weights", early=str(path))
    assert finetuner.early_fraction is None
    model = task.build_model()
    model[7].weight.data.fill_(9.0)
    spec = TrainSpec(epochs=0.1, batch_size=16)
    finetuner.finetune(model, Pruned({"7": MASK}), task, spec, seed=0, dense=DenseTraining(DENSE))
    assert model[7].weight.abs().max() < 1


def test_without_early_weights_there_is_an_error_with_the_ways_out(task: Any) -> None:
    with pytest.raises(SpecError, match=r"after 0\.1 of the dense training.*option `early`.*`rewind: learning_rate`"):
        Rewind("weights").finetune(task.build_model(), Pruned({}), task, DENSE, seed=0, dense=DenseTraining(DENSE))


def test_without_the_dense_training_s_spec_there_is_an_error(task: Any) -> None:
    with pytest.raises(SpecError, match="give `dense`"):
        Rewind().finetune(task.build_model(), Pruned({}), task, DENSE, seed=0)


def test_early_weights_of_another_network_are_refused(task: Any, tmp_path: Path) -> None:
    path = tmp_path / "early.safetensors"
    save_file(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(NetworkError, match="the right file in `early`"):
        Rewind("weights", early=str(path)).finetune(
            task.build_model(), Pruned({}), task, DENSE, seed=0, dense=DenseTraining(DENSE)
        )
    (tmp_path / "broken").write_bytes(b"no")
    for name in ("broken", "missing"):
        with pytest.raises(SpecError, match=r"must be a \.safetensors file"):
            Rewind("weights", early=str(tmp_path / name)).finetune(
                task.build_model(), Pruned({}), task, DENSE, seed=0, dense=DenseTraining(DENSE)
            )


def test_a_rewinding_beyond_the_beginning_is_refused(task: Any) -> None:
    spec = TrainSpec(epochs=11, batch_size=16)
    with pytest.raises(SpecError, match=r"11 epochs and that one 10"):
        Rewind().finetune(task.build_model(), Pruned({}), task, spec, seed=0, dense=DenseTraining(DENSE))


@pytest.mark.parametrize(
    "options", [{"rewind": "all"}, {"start": 0.0}, {"start": 1.0}, {"early": "x"}, {"rewind": "weights", "start": -1}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Rewind(**options)


def test_what_a_fine_tuner_takes_can_be_asked() -> None:
    assert accepts(Train(), "rungs")
    assert not accepts(Train(), "dense")
    assert accepts(Rewind(), "dense")
    assert not isinstance(Train(), Rewinder)
