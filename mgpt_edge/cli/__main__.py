"""`python -m mgpt_edge.cli` is `mgpt`: for launchers such as torchrun that start modules."""

from mgpt_edge.cli import main

main()
