"""Random checkpoints, and what memory allows them."""
