"""`python -m ckd`."""

from ckd.cli import main

main()
