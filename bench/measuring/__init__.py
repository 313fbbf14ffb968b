"""How things are timed, how figures scatter, and engines that stand in for missing kernels."""
