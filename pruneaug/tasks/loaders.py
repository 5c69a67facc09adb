"""A task from the user's own network and data loaders."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from pruneaug.errors import TaskError
from pruneaug.tasks.models.seeding import seeded
from pruneaug.tasks.protocol import Batch, Split
from pruneaug.tasks.scoring import Classifier

_TARGET_KEYS = ("labels", "label", "targets", "target")

Data = DataLoader[Any] | Dataset[Any] | Iterable[Any] | tuple[Tensor, Tensor]


def task_from_modules(
    model: nn.Module | Callable[[], nn.Module],
    *,
    train: Data,
    validation: Data,
    test: Data,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    trained: bool = True,
    name: str = "modules",
) -> LoaderTask:
    """A classification task from a network and a DataLoader, Dataset or (inputs, labels) tensors for each split.

    model: the network, which is copied and never changed, or a function that builds it the same on every call.
    train, validation, test: give samples or batches (inputs, labels), or a mapping with `labels`; inputs are one
        tensor or several, passed on in order. Augmentation is the dataset's own affair. Other iterables of batches
        must be new on every pass and come as they are.
    example_inputs: inputs as the network sees them when it runs; none: those of the first validation batch.
    trained: False has the network trained first.
    """
    if isinstance(model, nn.Module):
        build: Callable[[], nn.Module] = partial(_copy_on_cpu, model)
    elif callable(model):
        build = model
    else:
        raise TaskError(
            f"`model` must be a torch.nn.Module or a function that builds one, but got {type(model).__name__}"
        )
    given: dict[Split, Data] = {"train": train, "validation": validation, "test": test}
    data = {split: _as_loader(value, split) for split, value in given.items()}
    example = None
    if example_inputs is not None:
        example = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    return LoaderTask(name, build, data, trained, example)


@dataclass
class LoaderTask(Classifier):
    """A network and three iterables of batches."""

    name: str
    build: Callable[[], nn.Module]
    data: Mapping[Split, Iterable[Any]]
    trained: bool
    example: tuple[Tensor, ...] | None = None
    _sizes: dict[Split, int] = field(default_factory=dict, init=False, repr=False)

    def build_model(self) -> nn.Module:
        with seeded(0):
            model = self.build()
        if not isinstance(model, nn.Module):
            raise TaskError(f"`model` must build a torch.nn.Module, but built {type(model).__name__}")
        return model

    def example_inputs(self, batch: int) -> tuple[Tensor, ...]:
        """The example given, or the first validation samples, from the start again where there are fewer."""
        inputs = self.example
        if inputs is None:
            inputs = next(iter(self.batches("validation", batch))).inputs
        return tuple(tensor[torch.arange(batch) % len(tensor)] for tensor in inputs)

    @cached_property
    def _arguments(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.build_model().forward).parameters)

    def size(self, split: Split) -> int:
        if split not in self._sizes:
            loader = self.data[split]
            if isinstance(loader, DataLoader) and _can_rebatch(loader):
                self._sizes[split] = len(loader.dataset)  # type: ignore[arg-type]
            else:
                self._sizes[split] = sum(len(batch) for batch in self.batches(split, batch_size=1))
        return self._sizes[split]

    def batches(self, split: Split, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        """One pass. A loader with a sampler of its own, or an iterable, keeps its own order and batch size."""
        loader = self.data[split]
        if isinstance(loader, DataLoader):
            loader = _rebatched(loader, batch_size, seed)
        found = False
        for value in loader:
            found = True
            yield as_batch(_in_call_order(value, self._arguments) if isinstance(value, Mapping) else value, split)
        if not found:
            raise TaskError(f"the {split} data must hold at least one batch, but has none")


def as_batch(value: Any, split: str) -> Batch:
    """A batch from what a loader yields: (inputs..., labels), several inputs also as one tuple."""
    if isinstance(value, Batch):
        return value
    if isinstance(value, tuple | list) and len(value) >= 2:
        inputs, targets = list(value[:-1]), value[-1]
        if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
            inputs = list(inputs[0])
    else:
        inputs, targets = [], None
    if not inputs or not isinstance(targets, Tensor) or not all(isinstance(item, Tensor) for item in inputs):
        raise TaskError(f"a {split} batch must be tensors (inputs..., labels) or a mapping, but got {_describe(value)}")
    if targets.ndim != 1 or targets.is_floating_point() or not 0 < len(targets) == len(inputs[0]):
        raise TaskError(
            f"the labels of a {split} batch must be integers of the shape [batch], here [{len(inputs[0])}], "
            f"but got {_describe(targets)}; for another kind of target write a task of your own"
        )
    if int(targets.min()) < 0:
        raise TaskError(f"labels must be 0 or more, but a {split} batch holds {int(targets.min())}; mend the data")
    return Batch(tuple(inputs), targets.long())


def _in_call_order(batch: Mapping[str, Any], arguments: Sequence[str]) -> tuple[Any, ...]:
    """(inputs..., labels): the inputs in the order in which the network's forward takes them."""
    target = next((key for key in _TARGET_KEYS if key in batch), None)
    names = [name for name in arguments if name in batch and name != target]
    if target is None or len(names) != len(batch) - 1 or names != list(arguments[: len(names)]):
        raise TaskError(
            f"a batch that is a mapping must have `labels` and the first arguments of the network's forward "
            f"({', '.join(arguments[:4])}, ...), but got the keys {', '.join(map(str, batch))}; mend the collate_fn"
        )
    return *(batch[name] for name in names), batch[target]


def _copy_on_cpu(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).cpu()
    except RuntimeError as error:
        raise TaskError(f"`model` must be copyable, but is not: {error}; give a function that builds it") from error


def _as_loader(value: Data, split: str) -> Iterable[Any]:
    if isinstance(value, DataLoader):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(item, Tensor) for item in value):
        return DataLoader(TensorDataset(*value))
    if isinstance(value, Dataset):
        return DataLoader(value)
    if isinstance(value, Iterator):
        raise TaskError(
            f"the {split} data must start anew on every pass, but got an iterator; give a list or a DataLoader"
        )
    if isinstance(value, Iterable):
        return value
    raise TaskError(
        f"the {split} data must be a DataLoader, a Dataset, (inputs, labels) tensors or an iterable of batches, "
        f"but got {type(value).__name__}"
    )


def _rebatched(loader: DataLoader[Any], batch_size: int, seed: int | None) -> DataLoader[Any]:
    """The loader with this batch size, shuffled by the seed or in order.

    A sampler of the user's own (weights, for example) decides what training sees, so it is kept when there is a seed.
    """
    plain = type(loader.sampler) in (RandomSampler, SequentialSampler) and loader.batch_size is not None
    if not _can_rebatch(loader) or (seed is not None and not plain):
        return loader
    # Without a generator of its own every pass, in order too, would draw from torch's global one.
    generator = torch.Generator().manual_seed(0 if seed is None else seed)
    return DataLoader(
        loader.dataset,
        batch_size=batch_size,
        shuffle=seed is not None,
        generator=generator,
        drop_last=loader.drop_last and seed is not None,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _can_rebatch(loader: DataLoader[Any]) -> bool:
    """Whether the loader's dataset holds single samples at numbered places."""
    return not isinstance(loader.dataset, IterableDataset) and loader.batch_sampler is not None


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {', '.join(type(item).__name__ for item in value) or 'nothing'}"
    return type(value).__name__
