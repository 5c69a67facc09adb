"""What every classification task shares: logits, cross-entropy and accuracy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruneaug.errors import TaskError, TrainingError
from pruneaug.tasks.protocol import Batch, Split

_EVALUATION_BATCH = 64  # VGG-16 at 224x224 keeps 13 MB a sample in its largest activation


class Classifier(ABC):
    """The half of a task that follows from `batches` when every sample has one class."""

    @abstractmethod
    def batches(self, split: Split, batch_size: int, seed: int | None = None) -> Iterable[Batch]: ...

    def logits(self, model_output: Any) -> Tensor:
        """The scores [batch, classes]: the output itself, its `logits`, or the first element of a tuple."""
        return find_logits(model_output)

    def loss(self, model_output: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of a batch, a scalar."""
        logits = self.logits(model_output)
        _check_shape(logits, batch)
        if batch.targets.device.type == "cpu":  # reading labels back from a GPU would stall every step
            _check_classes(logits, batch)
        return F.cross_entropy(logits.float(), batch.targets, label_smoothing=label_smoothing)

    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Accuracy in [0, 1]. Raises TrainingError if an output is not finite."""
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        correct = seen = 0
        with evaluating(model), torch.no_grad():
            for batch in self.batches(split, _EVALUATION_BATCH):
                batch = batch.to(device)
                logits = self.logits(model(*batch.inputs))
                _check_shape(logits, batch)
                _check_classes(logits, batch)
                broken = len(logits) - int(logits.isfinite().all(dim=1).sum())
                if broken:
                    raise TrainingError(
                        f"the network's outputs must be finite, but {broken} of {len(logits)} samples of a {split} "
                        "batch have an infinite or NaN output; train with a lower learning rate"
                    )
                correct += int((logits.argmax(dim=1) == batch.targets).sum())
                seen += len(batch)
        if not seen:
            raise TaskError(f"the {split} data must hold at least one sample, but it is empty")
        return correct / seen


def find_logits(model_output: Any) -> Tensor:
    """The scores in a tensor, an object or mapping with `logits`, or a tuple that begins with them."""
    found = model_output
    if isinstance(found, Mapping) and "logits" in found:
        found = found["logits"]
    elif hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise TaskError(
            "a network must return its logits as a tensor, a tuple that begins with it, or an object with `logits`, "
            f"but got {type(model_output).__name__}"
        )
    return found


def _check_shape(logits: Tensor, batch: Batch) -> None:
    if logits.ndim != 2 or len(logits) != len(batch):
        raise TaskError(
            f"a network's logits must have the shape [batch, classes] with batch {len(batch)}, "
            f"but got {list(logits.shape)}; for another kind of network write a task of your own"
        )


def _check_classes(logits: Tensor, batch: Batch) -> None:
    largest = int(batch.targets.max())
    if largest >= logits.shape[1]:
        raise TaskError(
            f"labels must be below the number of classes of the network, but got label {largest} and "
            f"{logits.shape[1]} classes; build the network with num_classes={largest + 1} or more"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module is back in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
