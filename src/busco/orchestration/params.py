"""Parameters of DAGs that take text from outside."""

from __future__ import annotations

from airflow.models.param import Param

# no control characters but blanks: neither PostgreSQL nor a command line takes NUL
_TEXT = r"^[^\x00-\x08\x0e-\x1f\x7f]*$"


def text_param(description: str, most: int) -> Param:
    """A text that may be left empty. Airflow refuses another value when a run is triggered, by whichever way.

    Args:
        most: characters that it may have.
    """
    return Param("", type=["null", "string"], maxLength=most, pattern=_TEXT, description=description)


def choice_param(description: str, *words: str) -> Param:
    """One of some words; the first of them where nothing is said."""
    return Param(words[0], enum=list(words), description=description)
