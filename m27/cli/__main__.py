"""`python -m m27.cli`: the same as the command `m27`."""

from m27.cli import main

main()
