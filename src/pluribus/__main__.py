"""`python -m pluribus` is the `pluribus` command."""

from pluribus.cli import main

main()
