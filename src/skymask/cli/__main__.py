"""`python -m skymask.cli`."""

from skymask.cli import main

main()
