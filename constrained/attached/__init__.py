"""Constraints on tensors that stay plain parameters: kept by optimizer steps, or by a penalty."""
