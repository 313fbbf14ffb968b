"""Runs a bundle: vocabulary, layout, engines, decoding; never imports PyTorch."""
