"""A recurrent classifier of handwritten digits, with a constraint and without: `make demo`."""
