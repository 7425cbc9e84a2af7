"""The engine's promises, each with tests named after its id: K1 to K8, E01 to E40.

A test with the mark ``torch_today`` runs the same check on torch's own engine and pins that, and
how, it fails there. ``python -m tests.promises`` runs them.
"""
