"""Embeddings against PyTorch."""

import pytest
import torch
from planes_tensors import from_planes
from targets import LANES, run

from pruneaug.kernels.embedding import embedding, embedding_plain
from pruneaug.kernels.planes import token_planes


def random_table(rows, channels):
    """A table, whose rows lie at no special address, and ids of its first, last and other rows."""
    ids = torch.randint(rows, (3, 40))
    ids[:, 0], ids[:, 1] = 0, rows - 1
    return torch.randn(rows, channels), ids


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("channels", [1, 3, 17, 64])
def test_tokens_are_rows_of_the_table(lanes, images, tokens, channels):
    table, ids = random_table(50, channels)
    ids = ids[:images, :tokens].contiguous()
    planes = token_planes(images, channels, tokens, lanes)
    y = run(lanes, embedding(table.numpy(), planes, lanes), ids.view(-1))
    assert torch.equal(from_planes(y, planes), table[ids])
    y = run(lanes, embedding_plain(table.numpy(), ids.numel(), lanes), ids.view(-1))
    assert torch.equal(y.view(images, tokens, channels), table[ids])


@pytest.mark.parametrize("lanes", LANES)
def test_ids_outside_the_table_read_its_first_and_last_rows(lanes):
    table, _ = random_table(5, 20)
    ids = torch.tensor([-1, 5, -(2**63), 2**63 - 1, 2**32, 3])
    want = table[[0, 4, 0, 4, 4, 3]]
    planes = token_planes(1, 20, 6, lanes)
    assert torch.equal(from_planes(run(lanes, embedding(table.numpy(), planes, lanes), ids), planes)[0], want)
    assert torch.equal(run(lanes, embedding_plain(table.numpy(), 6, lanes), ids).view(6, 20), want)
