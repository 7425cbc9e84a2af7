"""What a constraint is, what it is called, and how it is written down."""
