"""Sets of numbers: each entry of a tensor is one element."""
