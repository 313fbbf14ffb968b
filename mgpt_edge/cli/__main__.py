"""`python -m mgpt_edge.cli`."""

from mgpt_edge.command import main

main()
