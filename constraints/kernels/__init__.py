"""Sets of convolution kernels."""
