"""Objects of other libraries as constraints of this catalogue: one library in a file."""
