"""MiniStack's private functions are as this package expects them, and any other version of MiniStack is refused."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from ministack.services import ecs

from busco.embedded import local_ecs, ministack_contract, s3_limits

EMBEDDED = Path(ministack_contract.__file__).parent
CORRECTING = [
    path.stem for path in sorted(EMBEDDED.glob("*.py")) if re.search(r"^EXPECTED\b", path.read_text(), re.MULTILINE)
]


def test_each_module_that_relies_on_ministack_functions_checks_them() -> None:
    assert {"athena_iceberg", "local_ecs", "policies", "provisioned", "s3_intents", "signatures"} <= set(CORRECTING)
    for name in CORRECTING:
        called = re.findall(
            r'ministack_contract\.check\(__name__, \w+, "([^"]+)"\)', (EMBEDDED / f"{name}.py").read_text()
        )
        assert called, name
        for test in called:
            assert (EMBEDDED.parents[2] / test).is_file(), test


@pytest.mark.parametrize("name", CORRECTING)
def test_the_pinned_ministack_version_is_accepted_and_another_is_refused(name: str) -> None:
    expected = import_module(f"busco.embedded.{name}").EXPECTED
    if name == "local_ecs":
        expected = {f"services.ecs.{function}": parameters for function, parameters in expected.items()}
    ministack_contract.check(name, expected, "a test")
    with pytest.raises(RuntimeError, match=r"1\.5\.34 is installed"):
        ministack_contract.check(name, expected, "a test", version="1.5.34")


def test_a_missing_function_or_one_with_different_parameters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ecs, "_stop_task", len)
    with pytest.raises(RuntimeError, match=r"services\.ecs\._stop_task\. Run a test against"):
        ministack_contract.check("x", {"services.ecs._stop_task": local_ecs.EXPECTED["_stop_task"]}, "a test")
    monkeypatch.delattr("ministack.services.s3._error")
    with pytest.raises(RuntimeError, match=r"services\.s3\._error\. "):
        ministack_contract.check("x", s3_limits.EXPECTED, "a test")
