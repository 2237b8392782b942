"""Kernels of our own, in Triton, which comes with torch for CUDA."""
