"""``python -m constrained``: the command ``constrained``."""

from constrained.command_line.app import main

if __name__ == "__main__":
    main()
