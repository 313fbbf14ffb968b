"""Precisions, a file each: how weights are packed, what the packed form computes, and the record of both."""
