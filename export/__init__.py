"""Compiles a PyTorch checkpoint into a bundle."""
