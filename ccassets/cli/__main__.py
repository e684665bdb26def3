"""`python -m ccassets.cli`: the command line without its script."""

from ccassets.cli import main

main()
