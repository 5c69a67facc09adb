"""Fine-tuners recover the accuracy of a pruned network; one file a method."""

from pruneaug.registry import Registry

FINETUNERS = Registry("finetuners", {"train": "pruneaug.finetune.train:Train"})
