"""Networks by name, built with seeded random weights."""

from pruneaug.registry import Registry

MODELS = Registry(
    "models",
    {
        "digits_cnn": "pruneaug.tasks.models.digits_cnn:digits_cnn",
        "resnet20": "pruneaug.tasks.models.resnet:resnet20",
        "resnet50": "pruneaug.tasks.models.resnet:resnet50",
        "vgg16": "pruneaug.tasks.models.vgg:vgg16",
        "vgg16_224": "pruneaug.tasks.models.vgg:vgg16_224",
        "vit_b16": "pruneaug.tasks.models.transformer:vit_b16",
        "bert_base": "pruneaug.tasks.models.transformer:bert_base",
        "transformers": "pruneaug.tasks.models.transformer:transformers",
    },
)

__all__ = ["MODELS"]
