"""Images in folders, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pruneaug.errors import TaskError
from pruneaug.tasks.cache import cache_folder, cached_tensors
from pruneaug.tasks.classification import ClassificationTask, Examples
from pruneaug.tasks.images import check_options, decode_images, image_task
from pruneaug.tasks.network import NetworkSource
from pruneaug.tasks.protocol import Split
from pruneaug.tasks.splitting import limited, part_size, stratified_split

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_VALIDATION_NAMES = ("val", "validation", "valid")


def image_folder(
    model: NetworkSource,
    root: str,
    validation: int | float = 0.1,
    test: int | float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    size: int | None = None,
    channels: int = 3,
    pad: int = 4,
    flip: bool = True,
    erase: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: str | None = None,
) -> ClassificationTask:
    """`root/train/<class>/*.png`, `root/test/...` and, if there, `root/val/...`; or `root/<class>/*.png`.

    validation, test: how many images (int), or which fraction of them (float), are split off by `seed` where there is
    no folder for them; `test` only where there is no train folder. Classes are numbered in the order of their names.
    limit: use only the first images of what is left to train on, for quick runs; they are taken across the classes.
    size: scale and cut all images to size x size. pad, flip, erase: the augmentation of training images.
    cache: the folder of decoded images; none: $XDG_CACHE_HOME/pruneaug.
    """
    check_options(size, channels, pad, erase)
    folder = Path(root)
    if not folder.is_dir():
        raise TaskError(f"`root` must be a folder, but {folder} is none; check the path")
    if (folder / "train").is_dir():
        classes, files = _split_folders(folder)
    else:
        classes = _class_names(folder)
        files = {"train": _files(folder, classes)}

    def read(split: Split) -> Examples:
        paths, labels = files[split]
        options = {"size": size, "channels": channels}
        encoded = [(str(path), path) for path in paths]
        tensors = cached_tensors(
            cache_folder(cache), paths, options, lambda: {"images": decode_images(encoded, size, channels)}
        )
        return Examples((tensors["images"],), labels)

    everything = read("train")
    splits: dict[Split, Examples] = {split: read(split) for split in files if split != "train"}
    shares: dict[Split, int | float] = {"validation": validation, "test": test}
    open_shares = {split: share for split, share in shares.items() if split not in splits}
    sizes = [part_size(share, len(everything), split) for split, share in open_shares.items()]
    if sum(sizes) >= len(everything):
        raise TaskError(
            f"`validation` and `test` must leave images to train on, but take {sum(sizes)} of {len(everything)}"
        )
    *parts, rest = stratified_split(everything.targets, sizes, seed)
    for split, part in zip(open_shares, parts, strict=True):
        splits[split] = everything.select(part)
    if limit is not None:  # files are in the order of their classes: the first ones must not be of one class
        rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))]
    splits["train"] = everything.select(limited(rest, limit))
    return image_task("image-folder", model, splits, len(classes), pad, flip, erase, mean, std)


Files = tuple[list[Path], Tensor]  # paths, and int64 [paths]: the class of each


def _split_folders(folder: Path) -> tuple[list[str], dict[Split, Files]]:
    if not (folder / "test").is_dir():
        raise TaskError(
            f"a folder with train/ must have test/ too, but {folder} has none; "
            "move some images there, or put all class folders into one root to have them split"
        )
    classes = _class_names(folder / "train")
    found = [folder / name for name in _VALIDATION_NAMES if (folder / name).is_dir()]
    places: dict[Split, Path] = {"train": folder / "train", "test": folder / "test"}
    if found:
        places["validation"] = found[0]
    return classes, {split: _files(place, classes) for split, place in places.items()}


def _class_names(folder: Path) -> list[str]:
    names = sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    if len(names) < 2:
        raise TaskError(
            f"images must lie in at least two class folders, but {folder} has {', '.join(names) or 'none'}; "
            f"put them into {folder}/<class>/"
        )
    return names


def _files(folder: Path, classes: list[str]) -> Files:
    strangers = sorted(set(_class_names(folder)) - set(classes))
    if strangers:
        raise TaskError(
            f"the classes must be those of train, but {folder} has {strangers[0]!r}; train has {', '.join(classes)}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [path for path in sorted((folder / name).rglob("*")) if path.suffix.lower() in _SUFFIXES]
        if not found:
            raise TaskError(
                f"every class must have an image, but {folder / name} has none; add some or remove the class"
            )
        paths += found
        labels += [label] * len(found)
    return paths, torch.tensor(labels)
