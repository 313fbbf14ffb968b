"""Measures ceilings, latency and quality."""
