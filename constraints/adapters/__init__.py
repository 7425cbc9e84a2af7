"""Objects of other libraries that mean constraints of this catalogue."""
