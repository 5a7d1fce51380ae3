"""Checks that the installed MiniStack is the version whose private functions this package replaces, wraps and calls.

Each module that patches MiniStack lists the functions that it relies on in `EXPECTED`: their dotted names below
`ministack`, with the parameters that they had when the module was written. The module calls `check` before it changes
anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version as installed

VERSION = "1.5.33"
"""The version pinned in requirements/local.in."""


def check(corrector: str, expected: Mapping[str, Sequence[str]], test: str, version: str | None = None) -> None:
    """Checks that the installed MiniStack is the version that a module was written for.

    Args:
        corrector: the module's name, for the message.
        expected: the module's `EXPECTED`.
        test: the test file that shows whether the module still works, for the message.
        version: MiniStack's version; None looks up the installed package.

    Raises:
        RuntimeError: the version differs, or a function is missing or has different parameters.
    """
    found = version or installed("ministack")
    changed = []
    for name, parameters in expected.items():
        module, _, function = name.rpartition(".")
        there = getattr(import_module(f"ministack.{module}"), function, None)
        if not callable(there) or list(inspect.signature(there).parameters) != list(parameters):
            changed.append(name)
    if found != VERSION or changed:
        what = f"; changed or missing: {', '.join(changed)}" if changed else ""
        raise RuntimeError(
            f"{corrector} patches MiniStack {VERSION}, but {found} is installed{what}. Run {test} against the new "
            "version, then update busco.embedded.ministack_contract.VERSION."
        )
