"""How tensors become parametrized, lose parametrizations, and become plain again."""
