"""The small checkpoint, from nothing: its world, its training and its judge."""
