"""Parameters with text that users enter refuse text that a database or a command line does not accept."""

from __future__ import annotations

import pytest
from airflow.exceptions import ParamValidationError
from airflow.models.param import ParamsDict

from busco.orchestration.params import choice_param, text_param


@pytest.mark.parametrize("text", ["a\0", "\0", "a\x1b[2J", "a\x7f", "a" * 101, "\n\0", 5, ["a"]])
def test_invalid_text_is_refused_by_the_check_that_every_way_of_triggering_a_run_uses(text: object) -> None:
    # airflow/models/dag.py, create_dagrun (2.10.5): the REST API, the form, the command line and other DAGs all call it
    params = ParamsDict({"select": text_param("what", most=100), "action": choice_param("which", "a", "b")})
    params.validate()
    with pytest.raises(ParamValidationError):
        params.update({"select": text})


@pytest.mark.parametrize("text", ["", None, "+fct_orders,tag:daily", "a\nb\tc", "ação", "a" * 100])
def test_any_other_text_is_accepted(text: str | None) -> None:
    params = ParamsDict({"select": text_param("what", most=100)})
    params.update({"select": text})
    assert params.validate() == {"select": text}
