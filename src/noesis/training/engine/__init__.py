"""The training engine: layers, kernels and gradients of its own."""
