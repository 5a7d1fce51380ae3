"""The exception for problems that the user can fix."""

from __future__ import annotations


class BuscoError(Exception):
    """A problem that the user can fix: what is wrong, where, and what to do.

    A command that raises this exception prints only its message and hint, and exits with status 1. Any other exception
    is a bug, and is printed with its traceback.

    Args:
        message: what is wrong and where, in one or more lines.
        hint: what to do about it, printed on a separate line.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message
