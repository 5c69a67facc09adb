"""Training loops as users write them, for the tests of those who plug theirs in."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def plain(model: nn.Module, loader: Any, epochs: float, device: torch.device, lr: float = 0.05) -> None:
    """Knows nothing of masks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(round(epochs)):
        for x, y in loader:
            loss = functional.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accelerated(accelerator: Any, model: nn.Module, loader: Any, loss: Any, epochs: float, lr: float = 0.05) -> None:
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=lr / 10)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(round(epochs)):
        for x, y in loader:
            accelerator.backward(loss(model(x), y))
            optimizer.step()
            optimizer.zero_grad()


def lit(model: nn.Module, lr: float = 0.05) -> Any:
    import lightning.pytorch as pl

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            x, y = batch
            return functional.cross_entropy(self.model(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9)

    return Lit()
