"""Sets of matrices: the last two dimensions of a tensor are one element."""
