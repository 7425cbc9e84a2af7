"""Modules with parametrized tensors: their class, and their lists of parametrizations.

`ParametrizationList` stores the originals of one tensor. `module_class` makes the class in which
the tensor is a property. The other files say how such a module is read, assigned, listed, pickled
and converted, and what it refuses. How a module becomes one is in ``constrained.registration``.
"""
