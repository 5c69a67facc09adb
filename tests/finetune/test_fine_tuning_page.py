"""The loops and jobs of docs/fine-tuning.md train."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from pruneaug.finetune import FINETUNERS
from pruneaug.finetune.protocol import DenseTraining, accepts
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec import parse_job
from pruneaug.testing.task import ToyTask

PAGE = (Path(__file__).parents[2] / "docs/fine-tuning.md").read_text()
LOOPS = dict(re.findall(r'^```python title="(\S+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL))
JOBS = [
    parse_job(yaml.safe_load(text)) for text in re.findall(r'^```yaml title="job.yaml"\n(.*?)^```', PAGE, re.M | re.S)
]


@pytest.fixture(autouse=True)
def beside_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in LOOPS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in LOOPS:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.parametrize("number", range(len(JOBS)))
def test_each_documented_fine_tuner_trains_under_masks(number: int) -> None:
    job = JOBS[number]
    if job.finetune.name in ("accelerate", "lightning"):
        pytest.importorskip(job.finetune.name)
    task = ToyTask("cnn")
    model, teacher = task.build_model(), task.build_model()
    mask = torch.rand(4, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    finetuner = FINETUNERS.create(job.finetune.name, job.finetune.options)
    dense = {"dense": DenseTraining(job.task.train)} if accepts(finetuner, "dense") else {}
    spec = job.finetune.trial.model_copy(update={"epochs": 4, "batch_size": 16})
    finetuner.finetune(model, Pruned({"11": mask}), task, spec, seed=0, teacher=teacher, **dense)
    assert torch.equal(model[11].weight != 0, mask)
    assert task.evaluate(model, "train") > task.evaluate(teacher, "train")


def test_the_page_names_every_built_in_fine_tuner_and_every_value_a_loop_may_ask_for() -> None:
    from pruneaug.finetune.outside import OFFERED

    assert all(f"`{name}`" in PAGE for name in (*FINETUNERS.names(), *OFFERED))
