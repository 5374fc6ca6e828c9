"""The torch and Triton kernels of a decoder's step, at the real shapes of a model."""
