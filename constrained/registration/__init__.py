"""How tensors become parametrized, lose parametrizations, and become plain again.

``add``, ``remove`` and ``transfer`` hold the public functions. ``install`` is the one place
that writes into a module. The other files see to it that nothing else gets out of step: optimizers,
wrappers such as DDP, and tied tensors.
"""
