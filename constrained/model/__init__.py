"""What a user does to a model: constrain, release, rebase, write, report.

- ``constrain``, ``release``, ``rebase``, ``writable``, ``report``: the public functions.
- ``targets``: which tensors a path or a glob names. A new kind of target goes there.
- ``start``: where a tensor starts, for each ``init``.
- ``changes``: what will change in a model, prepared first and carried out all or nothing.
- ``lazy``: the change of a tensor that has no shape yet.
- ``view_warnings``: warnings where a constraint without a view may not be what was meant.
- ``error_messages``: error messages that begin with the path of the tensor.
"""
