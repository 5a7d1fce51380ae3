"""Parameters that take text from outside refuse what no database and no command line takes."""

from __future__ import annotations

import pytest
from airflow.exceptions import ParamValidationError
from airflow.models.param import ParamsDict

from busco.orchestration.params import choice_param, text_param


@pytest.mark.parametrize("text", ["a\0", "\0", "a\x1b[2J", "a\x7f", "a" * 101, "\n\0", 5, ["a"]])
def test_such_a_text_is_refused_as_airflow_checks_it_in_each_way_to_trigger_a_run(text: object) -> None:
    # airflow/models/dag.py, create_dagrun (2.10.5): REST, the form, the command line and other DAGs come there
    params = ParamsDict({"select": text_param("what", most=100), "action": choice_param("which", "a", "b")})
    params.validate()
    with pytest.raises(ParamValidationError):
        params.update({"select": text})


@pytest.mark.parametrize("text", ["", None, "+fct_orders,tag:daily", "a\nb\tc", "ação", "a" * 100])
def test_any_other_text_is_taken(text: str | None) -> None:
    params = ParamsDict({"select": text_param("what", most=100)})
    params.update({"select": text})
    assert params.validate() == {"select": text}
