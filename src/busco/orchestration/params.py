"""Typed DAG parameters for text that users enter."""

from __future__ import annotations

from airflow.models.param import Param

# Rejects all control characters except whitespace: NUL, for example, can be neither stored in PostgreSQL nor passed in
# command-line arguments.
_TEXT = r"^[^\x00-\x08\x0e-\x1f\x7f]*$"


def text_param(description: str, most: int) -> Param:
    """Returns an optional text parameter. Airflow validates its value, no matter how the run is triggered.

    Args:
        most: the maximum length in characters.
    """
    return Param("", type=["null", "string"], maxLength=most, pattern=_TEXT, description=description)


def choice_param(description: str, *words: str) -> Param:
    """Returns a parameter that accepts one of `words`; the first is the default."""
    return Param(words[0], enum=list(words), description=description)
