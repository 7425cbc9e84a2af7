"""Methods of other libraries that write into tensors, adapted to constrained ones.

Each file is about one library, or one topic of it. It changes classes of the library, or adds
members to the classes of its modules, once the user has imported the library. No library is
imported here.
"""
