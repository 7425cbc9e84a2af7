"""The command ``constrained``: what the catalogue has, and what a config or a checkpoint holds.

- ``app``: the command, and what it does about errors. A new subcommand is listed there.
- ``catalogue``: ``list``, ``show`` and ``schema``; ``picture``: the picture of ``show``.
- ``check``: ``check``, the dry run of a config; ``models``: models and packages by import path.
- ``run``: ``run``, experiments from their files.
- ``diff``: ``diff``, two checkpoints beside each other; ``checkpoint``: the values in their files.
- ``bench``: ``bench``, a timing on this machine; ``doctor``: ``doctor``, versions and conflicts.
- ``output``: tables, JSON and errors.
"""
