"""The family's training recipes and the world the small checkpoint learns from."""
