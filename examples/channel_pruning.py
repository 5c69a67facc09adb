"""What a search is compared with: whole channels removed by torch-pruning, then fine-tuned as a search's finalists are.

    pip install torch-pruning
    python examples/channel_pruning.py examples/cifar10_resnet20.yaml 0.5 runs/channels.pt \\
        --set task.options.root=FOLDER --set task.checkpoint=WEIGHTS

prints the validation accuracy; whether the loss is small enough tells which ratio is taken. Then, once, with --test the
test accuracy, and its time beside ours:

    CHANNELS=runs/channels.pt PYTHONPATH=examples pruneaug bench network channel_pruning:pruned --trust-code \\
        --shape 3x32x32 --sparsity 0 --against onnxruntime,openvino
"""

import argparse
import os

import torch
from torch import nn

from pruneaug.finetune.train import Train
from pruneaug.spec.load import load_job
from pruneaug.tasks.build import build_task


def pruned() -> nn.Module:
    """The network in the file that the environment variable CHANNELS names."""
    return torch.load(os.environ["CHANNELS"], weights_only=False).eval()


def remove_channels(model: nn.Module, example: torch.Tensor, ratio: float) -> None:
    """Remove this fraction of the channels, those with the smallest norm in the whole network, in place."""
    import torch_pruning as tp

    outputs = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=0.9,  # or whole layers vanish
        round_to=4,
        ignored_layers=[outputs],
    ).step()


def main() -> None:
    parser = argparse.ArgumentParser(description="Remove channels of a job's network, fine-tune it and store it.")
    parser.add_argument("spec", help="a job's YAML file")
    parser.add_argument("ratio", type=float, help="of the channels, 0 to 1")
    parser.add_argument("out", help="file for the network")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `pruneaug search`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true", help="judge the stored network on the test images, and no more")
    arguments = parser.parse_args()

    job = load_job(arguments.spec, arguments.set)
    task = build_task(job.task)
    if arguments.test:
        network = torch.load(arguments.out, weights_only=False)
        print(f"test accuracy {task.evaluate(network.eval(), 'test'):.4f}")
        return
    dense, network = task.build_model().eval(), task.build_model().eval()
    remove_channels(network, task.example_inputs(1)[0], arguments.ratio)
    Train().finetune(network, None, task, job.finetune.final, seed=arguments.seed, teacher=dense)
    torch.save(network, arguments.out)
    kept, all_weights = (sum(p.numel() for p in model.parameters()) for model in (network, dense))
    accuracy, before = (task.evaluate(model, "validation") for model in (network, dense))
    print(f"{kept / all_weights:.1%} of the weights, validation accuracy {accuracy:.4f}, before pruning {before:.4f}")


if __name__ == "__main__":
    main()
