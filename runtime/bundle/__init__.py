"""What lies on disk: a folder, its manifest, its tensors."""
