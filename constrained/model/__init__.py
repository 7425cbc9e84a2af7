"""What a user does to a model: constrain, release, write, report."""
