"""One token from the logits of one position."""
