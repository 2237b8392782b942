"""Parts of a block as kernels of our own, in Triton, for training on an NVIDIA GPU."""
