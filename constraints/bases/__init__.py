"""Classes that several constraints share, and what checks their arguments."""
