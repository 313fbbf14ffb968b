"""Quantisation schemes, a file each: how weights are packed, and what the packed form computes."""
