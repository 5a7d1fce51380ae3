"""The `busco` command, whose verbs are thin wrappers around the rest of the package."""

from busco.cli.main import main

__all__ = ["main"]
