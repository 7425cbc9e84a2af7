"""Sets of vectors: each row of a tensor, along its last dimension, is one element."""
