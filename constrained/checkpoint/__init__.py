"""State dicts of constrained models: written, and read in every known format.

- ``state_dict``: the public functions `load_state_dict` and `baked_state_dict`.
- ``load_hook``: what a module with parametrized tensors does while torch loads a state dict.
- ``saved_tensor``: which entries of a state dict hold one tensor, and which value they stand for.
- ``entries``: from a value to the entries that the model's own parametrization has for it.
- ``foreign_formats``: the keys that other libraries write. A new checkpoint format goes there.
"""
