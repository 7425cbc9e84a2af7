"""The tests, which lie as the code does, and what they share."""
