"""State dicts and files of constrained models: written, and read in every known format.

- ``save`` and ``load``: the public functions for files of weights and constraints.
- ``weights_file``: such a file on disk, written completely or not at all, and read with suspicion.
- ``saved_constraints``: what such a file says of constraints, given to a model or compared.
- ``wrapper_names``: how tensors are called without DDP, ``torch.compile`` and other wrappers.
- ``state_dict``: the public functions `load_state_dict` and `baked_state_dict`.
- ``load_hook``: what a module with parametrized tensors does while torch loads a state dict.
- ``saved_tensor``: which entries of a state dict hold one tensor, and which value they stand for.
- ``entries``: from a value to the entries that the model's own parametrization has for it.
- ``foreign_formats``: the keys that other libraries write. A new checkpoint format goes there.
"""
