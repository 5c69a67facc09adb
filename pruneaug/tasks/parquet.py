"""Images in Parquet files, in the column layout of Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruneaug.errors import TaskError
from pruneaug.tasks.cache import cache_folder, cached_tensors
from pruneaug.tasks.classification import ClassificationTask, Examples
from pruneaug.tasks.images import check_options, decode_images, image_task
from pruneaug.tasks.network import NetworkSource
from pruneaug.tasks.splitting import check_labels, limited, part_size, stratified_split

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


def parquet_images(
    model: NetworkSource,
    root: str | None = None,
    train: str | None = None,
    test: str | None = None,
    validation: int | float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    size: int | None = None,
    channels: int = 3,
    pad: int = 4,
    flip: bool = True,
    erase: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache: str | None = None,
) -> ClassificationTask:
    """Encoded images (a struct with `bytes`, or bytes) and integer labels in two files.

    root: the folder of train.parquet and test.parquet, in place of `train` and `test`.
    validation: how many images (int), or which fraction of them (float), are split off `train`, chosen by `seed`.
    limit: use only the first images of what is left to train on, for quick runs.
    size: scale and cut all images to size x size. pad, flip, erase: the augmentation of training images.
    cache: the folder of decoded images; none: $XDG_CACHE_HOME/pruneaug.
    """
    check_options(size, channels, pad, erase)
    train_file, test_file = _files(root, train, test)
    columns = (image_column, label_column)
    images, labels = _read(train_file, size, channels, columns, cache)
    test_images, test_labels = _read(test_file, size, channels, columns, cache)
    num_classes = check_labels(labels, test_labels, str(train_file), str(test_file))
    held_out, rest = stratified_split(labels, (part_size(validation, len(labels), "validation"),), seed)
    everything = Examples((images,), labels)
    return image_task(
        name="parquet-images",
        model=model,
        splits={
            "train": everything.select(limited(rest, limit)),
            "validation": everything.select(held_out),
            "test": Examples((test_images,), test_labels),
        },
        num_classes=num_classes,
        pad=pad,
        flip=flip,
        erase=erase,
        mean=mean,
        std=std,
    )


def _files(root: str | None, train: str | None, test: str | None) -> tuple[Path, Path]:
    if root is not None and train is None and test is None:
        files = Path(root) / "train.parquet", Path(root) / "test.parquet"
    elif root is None and train is not None and test is not None:
        files = Path(train), Path(test)
    else:
        raise TaskError(
            "the task 'parquet-images' needs the option `root`, or the options `train` and `test`, "
            f"but got root={root!r}, train={train!r}, test={test!r}"
        )
    for file in files:
        if not file.is_file():
            raise TaskError(f"the data must be a Parquet file, but {file} is not there; check the path")
    return files


def _read(
    file: Path, size: int | None, channels: int, columns: tuple[str | None, str | None], cache: str | None
) -> tuple[Tensor, Tensor]:
    """images uint8 [samples, channels, height, width], labels int64 [samples]."""
    options = {"size": size, "channels": channels, "columns": columns}
    tensors = cached_tensors(cache_folder(cache), [file], options, lambda: _decode(file, size, channels, columns))
    return tensors["images"], tensors["labels"]


def _decode(file: Path, size: int | None, channels: int, columns: tuple[str | None, str | None]) -> dict[str, Tensor]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as reader:
            names = reader.schema_arrow.names
            image_column = _column(file, names, columns[0], _IMAGE_COLUMNS, "image_column")
            label_column = _column(file, names, columns[1], _LABEL_COLUMNS, "label_column")
            table = reader.read([image_column, label_column])
    except (pa.ArrowException, OSError) as error:
        raise TaskError(f"the data must be a Parquet file, but {file} cannot be read: {error}") from error
    if not len(table):
        raise TaskError(f"a Parquet file must hold at least one image, but {file} has no rows")
    if table[label_column].null_count or not pa.types.is_integer(table[label_column].type):
        raise TaskError(
            f"labels must be integers without nulls, but column {label_column!r} of {file} has the type "
            f"{table[label_column].type} and {table[label_column].null_count} nulls; choose another by `label_column`"
        )
    encoded = (
        (f"row {row} of {file}", _content(value.as_py(), row, image_column, file))
        for row, value in enumerate(table[image_column])
    )
    images = decode_images(encoded, size, channels)
    return {"images": images, "labels": torch.tensor(table[label_column].to_pylist(), dtype=torch.int64)}


def _column(file: Path, names: list[str], chosen: str | None, usual: tuple[str, ...], option: str) -> str:
    candidates = usual if chosen is None else (chosen,)
    for name in candidates:
        if name in names:
            return name
    raise TaskError(
        f"{file} must have a column {' or '.join(map(repr, candidates))}, but has {', '.join(map(repr, names))}; "
        f"set the option `{option}`"
    )


def _content(value: Any, row: int, column: str, file: Path) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise TaskError(
            f"column {column!r} must hold encoded images as bytes or a struct with `bytes`, "
            f"but row {row} of {file} holds {type(content).__name__}; embed the images in the file"
        )
    return content
