"""Whole experiments that use constrained as a user would."""
