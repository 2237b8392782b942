"""Kernels of our own for decode steps on a GPU, in Triton."""
