"""Constraints of this catalogue for objects of other libraries."""
