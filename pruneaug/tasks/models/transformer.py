"""Transformers with random weights, from their configurations in the package `transformers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pruneaug.errors import TaskError
from pruneaug.tasks.extras import require
from pruneaug.tasks.models.seeding import seeded


def transformers(
    architecture: str,
    config: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network of the package transformers by its class, such as "BertForSequenceClassification".

    `config` holds keyword arguments of the class's configuration. The other arguments fill what `config` leaves
    open, where the configuration knows it. Attention is "eager": plain operators that torch.export can take apart.
    """
    library = require("transformers", "text", f"the network {architecture!r}")
    try:
        model_class = getattr(library, architecture, None)
    except (ImportError, RuntimeError) as error:
        raise TaskError(f"the network {architecture!r} of transformers does not import: {error}") from error
    config_class = getattr(model_class, "config_class", None)
    if model_class is None or config_class is None:
        raise TaskError(
            f"`architecture` must be a network class of transformers, but got {architecture!r}; "
            "for example 'BertForSequenceClassification' or 'ViTForImageClassification'"
        )
    given = dict(config or {})
    known = config_class().to_dict()
    aliases = {"num_labels", "attn_implementation", *config_class.attribute_map}
    unknown = sorted(set(given) - set(known) - aliases)
    if unknown:
        raise TaskError(f"{config_class.__name__} has no {unknown[0]!r}; its keys are {', '.join(sorted(known))}")
    filled = {
        "num_labels": num_classes,
        "num_channels": in_channels,
        "image_size": image_size,
        "vocab_size": vocab_size,
    }
    for key, value in filled.items():
        if value is not None and (key in known or key in aliases):
            given.setdefault(key, value)
    given.setdefault("attn_implementation", "eager")
    with seeded(seed):
        try:
            model = model_class(config_class(**given))
        except (TypeError, ValueError, AttributeError) as error:
            raise TaskError(f"{architecture} cannot be built from the config {given}: {error}") from error
    return _checked(model, architecture)


def vit_b16(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, seed: int = 0) -> nn.Module:
    """ViT-B/16: [batch, in_channels, image_size, image_size] -> [batch, num_classes] (arXiv:2010.11929)."""
    config = {"num_labels": num_classes, "num_channels": in_channels, "image_size": image_size}
    return transformers("ViTForImageClassification", config, seed=seed)


def bert_base(num_classes: int = 2, vocab_size: int = 30522, max_tokens: int = 512, seed: int = 0) -> nn.Module:
    """BERT-base: token ids [batch, tokens] (and an attention mask) -> [batch, num_classes] (arXiv:1810.04805)."""
    config = {"num_labels": num_classes, "vocab_size": vocab_size, "max_position_embeddings": max_tokens}
    return transformers("BertForSequenceClassification", config, seed=seed)


def _checked(model: object, architecture: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TaskError(f"`architecture` must be a PyTorch network of transformers, but {architecture!r} is none")
    return model
