"""Trains a user's checkpoint by the family's recipes; `mini/` makes the small one from nothing."""
