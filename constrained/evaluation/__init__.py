"""When a value may be reused, how it is evaluated, and how its gradient is found."""
