"""What a user does to a model: constrain, plan, release, rebase, write.

- ``constrain``, ``plan``, ``release``, ``rebase``, ``writable``: the public functions.
- ``config``: the rules of a config, whichever format or library gives it.
- ``patterns``: the grammar of patterns over paths. A new kind of target goes there.
- ``targets``: which tensors the targets of a config name, and which target has precedence.
- ``prepare``: from the arguments of ``constrain`` to rules, and to the change of each tensor.
- ``start``: where a tensor starts, for each ``init``.
- ``changes``: what will change in a model, prepared first and carried out all or nothing.
- ``lazy``: the change of a tensor that has no shape yet.
- ``view_warnings``: warnings where a constraint without a view may not be what was meant.
- ``cost``: the kind of work that a constraint takes; ``tables``: tables as text and as HTML.
- ``error_messages``: error messages that begin with the path of the tensor.
"""
