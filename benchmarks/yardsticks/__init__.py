"""Yardsticks: problems whose optimum is known, solved by every method that can; see `run`."""
