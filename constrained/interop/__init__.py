"""Methods of other libraries, adapted to constrained tensors: one library or topic in a file.

No library is imported here. Each file changes classes of a library, or adds members to the classes
of its modules, once the library has been imported by somebody else.
"""
