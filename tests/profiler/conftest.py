"""Measuring sets the number of PyTorch's threads: other tests keep theirs."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lasting():
    """A device whose server outlives its sessions."""
    import rpc_servers  # its packages are extras

    with rpc_servers.server(words=rpc_servers.LASTING) as server:
        yield server
