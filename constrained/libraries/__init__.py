"""Methods of other libraries that have to know of constrained tensors."""
