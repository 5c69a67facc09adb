"""Layers in reduced precision: bfloat16 and int8 products on the dot-product instructions of a CPU.

Activations lie in planes of words, as float32 ones lie in planes of values (`pruneaug.kernels.planes`): a word of 32
bits holds one position of two bfloat16 or four uint8 channels that follow each other. So vectors still run along
positions, and one instruction multiplies a word of weights by the words of a whole vector of positions, and adds the
two or four products to that vector's 32-bit sums.
"""
