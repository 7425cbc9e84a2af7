"""What surrounds an optimizer step, and layers that are trained faster than by their value."""
