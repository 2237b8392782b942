"""The draw of a token as kernels of a GPU, in Triton."""
