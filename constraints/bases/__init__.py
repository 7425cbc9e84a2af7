"""Base classes that several constraints share, and checks of their arguments."""
