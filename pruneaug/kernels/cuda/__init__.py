"""Block-sparse products on the tensor cores of NVIDIA GPUs, generated as TIR and compiled by NVRTC.

`products` makes a call of the kernel in `spmm` from the weights of a linear layer, whose loads are in `loads`,
`convolutions` from those of a convolution, whose loads are in `images`; `warpgroups` are the products of Hopper.
`variants` lists the kernel's tiles, `packing` the arrays that it reads, `compiler` its machine code. All of it compiles
on a machine without a GPU. `program` keeps what was compiled, and `driver` launches it, on a machine without a
compiler.
"""
