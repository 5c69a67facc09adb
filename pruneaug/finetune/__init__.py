"""Fine-tuners recover the accuracy of a pruned network; one file a method."""

from collections.abc import Mapping
from typing import Any

from pruneaug.registry import Registry


class FineTunerRegistry(Registry):
    """Fine-tuners by name; a name may also stand for a plain function that trains a model."""

    def create(self, name: str, options: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of every registry, but a function whose first parameter is `model` is a training loop: see Function."""
        from pruneaug.finetune.function import Function, is_training_function  # torch is imported only on demand

        plugin = self.load(name)
        if is_training_function(plugin):
            return Function(plugin, options, who=name)
        return super().create(name, options, *args, **kwargs)


FINETUNERS = FineTunerRegistry(
    "finetuners",
    {
        "train": "pruneaug.finetune.train:Train",
        "rewind": "pruneaug.finetune.rewind:Rewind",
        "accelerate": "pruneaug.finetune.accelerate:Accelerate",
        "lightning": "pruneaug.finetune.lightning:Lightning",
    },
)
