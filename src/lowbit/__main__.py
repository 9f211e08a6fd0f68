"""`python -m lowbit` is the command line."""

from lowbit.cli import main

main()
