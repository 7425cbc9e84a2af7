"""Changes that happen completely or not at all."""
