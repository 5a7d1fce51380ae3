"""The `busco` command: each verb a thin call."""

from busco.cli.main import main

__all__ = ["main"]
