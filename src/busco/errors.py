"""The one exception for what a user can mend."""

from __future__ import annotations


class BuscoError(Exception):
    """Something that the user can mend: what is wrong, where, and what to do.

    A command that raises it ends with this message alone and exit status 1; any other exception is a bug and
    keeps its traceback.

    Args:
        message: what is wrong and where, in one or more lines.
        hint: what to do about it, printed on a line of its own.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message
