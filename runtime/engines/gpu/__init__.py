"""Engines whose caches lie in the memory of a GPU."""
