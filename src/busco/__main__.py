"""Runs the `busco` command (`python -m busco`)."""

from busco.cli import main

main()
