"""PyTorch networks whose pruned layers run our kernels on an NVIDIA GPU; everything else stays PyTorch's.

`building` exports a network, folds its batch-norms and lets `fusing` put the operator of `operator` in the place of
every pruned layer, by the kernel that `choice` names; `network` calls what comes of it, recorded in a CUDA graph, and
keeps it in a file. No compiler is imported: where TVM is not installed, compiled kernels are read from a folder.
"""
