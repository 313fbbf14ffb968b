"""Lowerings, a file for each engine: the traced graph becomes what that engine runs best."""
