"""Engines, a file each, behind one interface (`base`)."""
