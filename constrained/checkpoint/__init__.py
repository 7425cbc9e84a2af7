"""State dicts of constrained models: written, and read in every known format."""
