"""The mathematics of block sparsity: pure functions on weight matrices."""
