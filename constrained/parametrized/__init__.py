"""What a module with parametrized tensors is: its class, its originals, its values."""
