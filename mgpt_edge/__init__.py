"""Lumina-mGPT compiled for edge machines."""
