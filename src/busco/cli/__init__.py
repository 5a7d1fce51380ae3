"""The `busco` command; each verb is a thin call into the package."""

from busco.cli.main import main

__all__ = ["main"]
