"""Constraints that are made of other constraints."""
