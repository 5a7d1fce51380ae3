"""Starts and stops the local AWS of the tests with other engines, which must know its address and keys when they start.

python -m tests.engines.server env      starts it if it isn't running, and prints `export` lines for a shell
python -m tests.engines.server stop     stops it; its objects stay in .busco/engines
"""

from __future__ import annotations

import os
import sys
from unittest import mock

from busco.embedded import aws
from busco.errors import BuscoError
from busco.settings import Settings
from tests.platforms import ROOT, neutral_environment

STATE = ROOT / ".busco/engines"


def _log(line: str) -> None:
    print(line, file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Runs the action in `arguments`; returns the exit status."""
    with mock.patch.dict(os.environ, neutral_environment(), clear=True):
        settings = Settings(home=ROOT, state_dir=STATE)
        try:
            if arguments == ["env"]:
                aws.up(settings, _log)
                print(aws.env_lines(settings), end="")
            elif arguments == ["stop"]:
                aws.down(settings, _log)
            else:
                _log(str(__doc__))
                return 2
        except BuscoError as error:
            _log(str(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
