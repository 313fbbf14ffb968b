"""What all checkpoints of the family agree on: ids, the layout of a picture, what may come next, prompts."""
