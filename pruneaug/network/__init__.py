"""A PyTorch network as pruneaug sees it: prunable layers, each with its op."""
