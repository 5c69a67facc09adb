"""Times of layers on an NVIDIA GPU: our kernels in turns with PyTorch's, in a process that one may break."""
