"""docs/operating.md is the runbook: each problem that it lists is reproduced by a test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# the beginning of each row in the runbook's tables of problems → the tests that reproduce the problem
REPRODUCED_BY = {
    "`pin`": (
        "test_a_selection_that_matches_nothing_fails_the_pin_with_the_reason",
        "test_a_delivery_under_another_contract_stops_the_pin_with_the_files_to_ingest_again",
    ),
    '`pin`: "another project': (
        "test_a_table_of_another_project_in_the_live_release_is_refused_before_anything_is_built",
    ),
    '`pin`: "the ECS task that resolves': (
        "test_a_selection_that_no_ecs_task_can_resolve_fails_the_pin_with_ecs_s_message",
    ),
    '`pin`, `publish`: "has no id': ("test_two_projects_with_one_name_do_not_drop_each_other_s_tables",),
    '`publish`: "this may be another project"': (
        "test_a_publish_that_may_belong_to_another_project_fails_and_suggests_both_fixes",
        "test_two_projects_with_one_name_do_not_drop_each_other_s_tables",
    ),
    '`publish`: "was pinned for the dbt project"': (
        "test_a_run_is_published_only_for_the_project_that_it_was_pinned_for",
    ),
    '"Page refused" (403) from Airflow': (
        "test_a_page_of_another_site_changes_nothing_on_behalf_of_the_user_who_is_logged_in",
        "test_a_page_of_another_site_can_not_change_anything_with_the_browser_s_login",
    ),
    "429 from Airflow or Flower": (
        "test_ten_wrong_passwords_lock_out_that_user_but_no_other_user",
        "test_failed_logins_are_limited_per_user_and_address_and_less_strictly_per_user",
    ),
    '400 "the body is too long"': ("test_a_trigger_request_that_the_event_log_would_read_differently_is_refused",),
    "411 or 413 from Airflow": ("test_a_body_without_a_length_and_one_that_is_too_long_are_not_read",),
    "a model's `run`": ("test_a_broken_model_is_the_only_red_task_with_one_alert_and_clearing_it_finishes_the_run",),
    "a model's `test`": ("test_failed_tests_of_one_and_of_several_models_are_red_tasks_until_they_are_fixed",),
    "a test over several models": (
        "test_failed_tests_of_one_and_of_several_models_are_red_tasks_until_they_are_fixed",
    ),
    'a task whose runner "ended': (
        "test_a_shared_runner_that_dies_is_replaced_a_limited_number_of_times",
        "test_a_model_that_runs_out_of_memory_twice_fails_while_other_models_are_built",
    ),
    'any task: "calls to AWS kept failing"': (
        "test_a_deferred_task_whose_records_cannot_be_read_says_so_and_what_to_do",
        "test_a_deferred_task_whose_pin_cannot_be_read_says_so_and_what_to_do",
    ),
    '"current.json is missing': (
        "test_P2_nothing_is_pinned_published_or_rolled_back_to_if_current_json_is_missing",
        "test_G1_no_table_is_deleted_if_current_json_is_missing",
    ),
    '`publish`, `glue`: "the records or': (
        "test_P9_a_release_without_a_record_or_page_is_neither_published_nor_rolled_back_to",
        "test_a_release_without_its_metadata_is_neither_published_nor_rolled_back_to",
        "test_glue_never_points_to_metadata_that_does_not_exist",
    ),
    '"no version in the bucket has the original content"': (
        "test_data_that_no_version_holds_is_named_with_what_to_do",
        "test_what_nothing_can_restore_is_left_with_what_to_do",
    ),
    '"AWS refused PutObject"': (
        "test_a_record_that_the_bucket_policy_protects_is_left_with_what_an_administrator_does",
    ),
    '"until busco scrub has finished"': (
        "test_no_repair_brings_back_what_a_scrub_has_removed_wherever_the_scrub_was_killed",
    ),
    '"because its data file can\'t be restored either"': (
        "test_a_deleted_delivery_record_is_not_restored_without_its_data_file",
    ),
    '"run this in dbt\'s environment"': ("test_what_nothing_can_restore_is_left_with_what_to_do",),
    '"already exists, but with different content"': (
        "test_an_object_that_something_else_has_written_under_the_key_of_a_version_is_not_used",
        "test_a_page_with_different_content_is_not_used",
    ),
    '"use the publisher role"': ("test_what_nothing_can_restore_is_left_with_what_to_do",),
    "a table is missing or was changed in Glue": ("test_a_check_is_tried_three_times_before_it_alerts",),
    "`docs`": ("test_failed_docs_and_a_missing_glue_database_are_red_tasks_of_their_own",),
    '`publish`: "published by another run': (
        "test_one_of_two_concurrent_publishers_wins_and_the_other_says_what_to_do",
    ),
    'in `publish`: "can\'t assume …"': (
        "test_if_the_role_is_denied_an_error_is_raised_or_the_own_credentials_are_used",
    ),
    '`publish`: "these tests have not passed': (
        "test_a_model_cleared_alone_after_its_tests_is_not_published_untested",
    ),
    "`glue`": ("test_failed_docs_and_a_missing_glue_database_are_red_tasks_of_their_own",),
    '"waiting for a slot': ("test_each_model_has_a_container_and_no_more_run_at_once_than_there_are_slots",),
    '"the slot was taken away': (
        "test_an_owner_that_stalled_and_lost_its_slot_stops_its_task_and_requests_a_slot_again",
    ),
    '"ECS cannot start the task now': ("test_a_transient_error_is_retried_and_one_task_is_started",),
    '"runner 1 is gone: …': (
        "test_a_container_that_is_killed_is_replaced_and_finished_models_are_not_built_again",
        "test_a_task_that_is_stopped_by_hand_is_replaced",
    ),
    '"runner 1 is gone: it sent no heartbeats': ("test_a_container_that_hangs_is_stopped_and_replaced",),
    '"… starting a runner of size medium': ("test_a_model_that_runs_out_of_memory_is_built_alone_in_the_next_size",),
    'red: "ended without a result': ("test_a_model_that_runs_out_of_memory_twice_fails_while_other_models_are_built",),
    'red: "its runner could not start"': (
        "test_a_permanent_error_fails_at_once_with_its_reason_and_frees_the_slot",
        "test_a_run_survives_failures_of_ecs",
    ),
    'red: "its runner reported an error"': (
        "test_after_a_parse_error_only_the_task_that_reported_it_has_to_be_cleared",
    ),
    "\"the run's commit": ("test_a_commit_that_is_missing_from_this_clone_is_named_with_what_to_do",),
    '"files that differ': ("test_a_run_without_a_commit_and_one_with_changed_files_are_reported",),
    '"… was not finished': ("test_a_model_whose_parent_failed_in_the_run_is_replayed_together_with_it",),
    '"the run has not built': ("test_a_fix_is_tried_on_the_runs_data_although_prod_has_published_since",),
    '"… runs have': ("test_unknown_and_ambiguous_runs_and_models_are_reported_with_the_possible_ones",),
    'ends with "… failed:"': ("test_ecs_check_fails_and_logs_what_to_fix",),
    "has no output of doctor's": (
        "test_a_task_with_an_image_that_does_not_exist_fails_to_start",
        "test_a_task_without_its_log_group_fails_to_start_and_starts_no_container",
    ),
    '`airflow-init` ends with "nothing is listening': ("test_wait_for_it_reports_the_unreachable_address",),
    '"container … is unhealthy"': ("test_doctor_passes_in_the_airflow_and_the_dbt_image_and_detects_a_paused_broker",),
    "a run's tasks wait, and `AGENT`": ("test_an_unreachable_starter_is_reported",),
    "`CannotStartContainerError: … is not the image": (
        "test_a_task_with_an_image_that_is_not_the_platform_s_fails_to_start",
    ),
    '"can\'t read" or "permission denied"': ("test_folders_are_made_readable_by_all_and_owned_by_the_airflow_user",),
    "no run and no tables": ("test_the_next_up_completes_an_interrupted_first_load_even_from_a_read_only_folder",),
    "an import error of `parse_check.py`": (
        "test_an_unparsable_project_is_an_import_error_and_the_last_good_graph_stays",
    ),
    "AccessDenied on RunTask": ("test_a_role_can_do_only_what_its_policy_allows",),
    "messages wait, or stay": ("test_a_file_that_arrives_while_the_service_is_down_is_published_when_it_is_back",),
    '"paused by"': ("test_while_the_service_is_paused_new_objects_wait",),
    "no messages, and no order": ("test_an_object_whose_event_was_lost_is_found_by_reconcile",),
    'an alert of the `drift` DAG, or from `busco doctor`: "does not notify"': (
        "test_a_notification_that_was_removed_or_replaced_is_an_alert_with_the_command",
        "test_a_notification_that_was_removed_is_back_after_the_command_of_the_failed_check",
    ),
    '"refused"': ("test_refused_objects_and_foreign_messages_are_shown_with_their_reasons",),
    '"blocked by run"': ("test_a_set_whose_run_failed_starts_nothing_until_something_is_new",),
    '"publishing is on hold"': ("test_files_that_arrive_during_a_hold_are_published_after_it",),
    "an alert of the `freshness` DAG": (
        "test_a_source_without_a_recent_delivery_fails_and_one_to_warn_about_does_not",
    ),
    '"a run will start soon"': ("test_files_that_arrive_while_the_dag_is_paused_are_published_once_it_is_unpaused",),
    "dead letters": ("test_refused_objects_and_foreign_messages_are_shown_with_their_reasons",),
    "`metrics-missing`": ("test_each_alarm_fires_and_ends",),
    "`scheduler-silent`": ("test_each_alarm_fires_and_ends",),
    "`triggerer-silent`": ("test_each_alarm_fires_and_ends",),
    "`tasks-failed`": ("test_each_alarm_fires_and_ends",),
    "`import-errors`": ("test_each_alarm_fires_and_ends",),
    "`tasks-queued`": ("test_each_alarm_fires_and_ends",),
    "`slots-exhausted`": ("test_each_alarm_fires_and_ends",),
    "`release-stale`": ("test_each_alarm_fires_and_ends",),
    "`producers-silent`": ("test_each_alarm_fires_and_ends",),
    "`deliveries-waiting`": ("test_each_alarm_fires_and_ends",),
    "`messages-waiting`": ("test_each_alarm_fires_and_ends",),
    "`dead-letters`": ("test_each_alarm_fires_and_ends",),
    "`disk-full`": ("test_each_alarm_fires_and_ends",),
    "`memory-full`": ("test_each_alarm_fires_and_ends",),
    "`certificate-expires`": ("test_each_alarm_fires_and_ends",),
    "`host-unreachable`": ("test_the_host_s_alarms_are_about_the_host_and_its_database",),
    "`database-storage-low`": ("test_the_host_s_alarms_are_about_the_host_and_its_database",),
    '"Host refused"': (
        "test_a_host_name_that_was_rebound_to_this_machine_is_refused_everywhere",
        "test_a_rebound_host_name_is_refused_and_known_ones_are_accepted",
    ),
    '400 "contains a NUL': ("test_a_run_with_text_that_no_database_accepts_is_refused_with_the_reason",),
    'a service ends with "AIRFLOW_LOGIN': (
        "test_a_webserver_does_not_start_with_an_invalid_or_unsafe_login_configuration",
        "test_setup_on_aws_refuses_a_well_known_password_even_one_from_an_earlier_start",
    ),
}


def rows() -> list[str]:
    """Returns the first cell of each row in the tables whose last column is "what to do"."""
    found: list[str] = []
    is_problem_table = False
    for line in (ROOT / "docs/operating.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            is_problem_table = False
        elif cells[-1] == "what to do":
            is_problem_table = True
        elif is_problem_table and not cells[0].startswith("--"):
            found.append(cells[0])
    return found


def test_each_problem_in_the_runbook_is_reproduced_by_a_test() -> None:
    problems, starts = rows(), list(REPRODUCED_BY)
    assert len(problems) > 20
    without = [row for row in problems if not any(row.startswith(start) for start in starts)]
    assert not without, "no test reproduces these problems"
    assert not [start for start in starts if not any(row.startswith(start) for row in problems)], (
        "these rows no longer exist"
    )


def test_the_tests_listed_for_the_runbook_exist() -> None:
    code = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    assert not {test for tests in REPRODUCED_BY.values() for test in tests} - known
