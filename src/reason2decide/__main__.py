"""`python -m reason2decide` is `r2d`: for launchers that start modules."""

from reason2decide.cli import main

main()
