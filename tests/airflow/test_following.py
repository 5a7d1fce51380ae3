"""Which runner's result a task accepts, and when it has one started, for the ways in which on-call can clear tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from unittest import mock

from busco.lake.records import DOCS_NODE, Order
from busco.orchestration.follow import Follow, Job
from busco.warehouse.plan import for_other_runners, plan
from tests.airflow.lab import BRONZE, Lab, a_model, a_test
from tests.airflow.simulation import simulate

S, G, K = "model.p.s", "model.p.g", "model.p.k"
X, Y, Z = "model.p.x", "model.p.y", "model.p.z"
TS, TG, JOINT = "test.p.ts", "test.p.tg", "test.p.joint"
CHAIN = {**a_model("s"), **a_model("g", "s"), **a_model("k", "g"), **a_test("ts", "s"), **a_test("tg", "g")}


def run(story: Coroutine[Any, Any, None]) -> None:
    simulate(story)


async def states(*followers: Coroutine[Any, Any, Any]) -> list[str]:
    return [ended.state for ended in await asyncio.gather(*followers)]


def test_one_shared_runner_serves_all_tasks_of_a_run() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        for nodes in ((S,), (TS,), (G,), (TG,), (K,), (DOCS_NODE,)):
            assert (await lab.follow(*nodes)).state == "success"
        assert lab.started == ["shared"]

    run(story())


def test_a_failed_model_is_red_with_its_error_and_clearing_it_builds_only_that_model() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        lab.bad[G] = "error"
        assert (await lab.follow(S)).state == "success"
        ended = await lab.follow(G, along=[TG])
        assert ended.state == "failed"
        assert f"{G} is bad" in ended.text
        lab.bad.clear()
        assert await states(lab.follow(G, attempt=2, along=[TG])) == ["success"]
        assert await states(lab.follow(TG), lab.follow(K)) == ["success", "success"]
        assert [node for _, node in lab.built] == [S, G, K]
        assert lab.started == ["shared", "g/2", "shared"]

    run(story())


def test_R9_a_model_downstream_of_a_failed_test_marked_success_reports_why_it_is_not_built() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        lab.bad[TS] = "failed"
        assert await states(lab.follow(S), lab.follow(TS)) == ["success", "failed"]
        ended = await lab.follow(G)
        assert ended.state == "failed"
        assert "ts failed in this run" in ended.text
        assert len(lab.started) <= 2

    run(story())


def test_R9_a_failing_test_of_a_source_fails_the_models_downstream_of_it() -> None:
    async def story() -> None:
        source = "test.p.source"
        lab = Lab({**CHAIN, **a_test("source", BRONZE)})
        lab.bad[source] = "failed"
        assert await states(lab.follow(source), lab.follow(S)) == ["failed", "failed"]
        assert len(lab.started) <= 2

    run(story())


def test_after_a_parse_error_only_the_task_that_reported_it_has_to_be_cleared() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, parse_error="dbt can't parse the project")
        ended = await lab.follow(S)
        assert (ended.state, "can't parse" in ended.text) == ("failed", True)
        lab.parse_error = ""
        assert (await lab.follow(S, attempt=2, along=[TS])).state == "success"
        for node in (TS, G, TG, K):
            assert (await lab.follow(node)).state == "success"

    run(story())


def test_a_shared_runner_that_dies_is_replaced_a_limited_number_of_times() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        lab.deadly.add(G)
        assert (await lab.follow(S)).state == "success"
        ended = await lab.follow(G, restarts=2)
        assert ended.state == "failed"
        assert "ended without a result" in ended.text
        assert "clear this task" in ended.text
        assert [node for _, node in lab.built] == [S], "built models are not built again"
        lab.deadly.clear()
        assert (await lab.follow(G, attempt=2, restarts=2)).state == "success"
        assert (await lab.follow(K, restarts=2)).state == "success", "runners that died earlier do not count against it"

    run(story())


def test_a_runner_that_hangs_is_stopped_and_another_one_takes_over() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, silence=0.3)
        lab.hangs.add(G)
        assert [(await lab.follow(node)).state for node in (S, G, K)] == ["success"] * 3
        assert lab.stopped == [1]
        assert [node for _, node in lab.built] == [S, G, K], "built models are not built again"
        assert "no heartbeats" in lab.messages[0]
        assert "another runner will take over" in lab.messages[0]

    run(story())


def test_a_runner_that_hangs_and_can_not_be_stopped_is_given_up() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, silence=0.3)
        lab.hangs.add(S)
        with mock.patch.object(lab, "stop", mock.AsyncMock()) as stop:
            assert (await lab.follow(S)).state == "success"
        assert stop.await_count == 2
        assert len(lab.run.runners()) == 2

    run(story())


def test_R10_a_try_that_was_cancelled_while_building_does_not_affect_the_next_one() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        assert (await lab.follow(S)).state == "success"
        lab.slow[S] = 10
        second = asyncio.create_task(lab.follow(S, attempt=2))
        while "s/2" not in lab.started or len(lab.run.runners()) < 2:
            await asyncio.sleep(0.01)
        second.cancel()
        await lab.stop(lab.run.runners()[-1], "the test")
        lab.slow.clear()
        assert (await lab.follow(S, attempt=3)).state == "success"

    run(story())


def test_R10_a_version_that_an_earlier_try_is_still_building_does_not_count_for_this_one() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        assert (await lab.follow(S)).state == "success"
        lab.slow[S] = 0.4
        second = asyncio.create_task(lab.follow(S, attempt=2))
        while len(lab.run.runners()) < 2:
            await asyncio.sleep(0.01)
        second.cancel()
        assert (await lab.follow(S, attempt=3)).state == "success"
        assert lab.started == ["shared", "s/2", "s/3"]
        assert lab.run.entries()["silver.s"].runner == 3

    run(story())


def test_R8_a_joint_test_runs_again_if_a_version_that_it_read_has_been_rebuilt() -> None:
    async def story(before: str) -> None:
        lab = Lab({**CHAIN, **a_test("joint", "s", "g")})
        lab.bad |= {TG: "failed", JOINT: before}
        await lab.follow(S)
        assert await states(lab.follow(G), lab.follow(TG)) == ["success", "failed"]
        lab.bad.clear()
        assert (await lab.follow(G, attempt=2, along=[TG])).state == "success"
        assert (await lab.follow(TG, attempt=2)).state == "success"
        assert set(plan(lab.run, lab.project).nodes) == {JOINT, K, DOCS_NODE}
        assert (await lab.follow(JOINT)).state == "success"
        version = lab.run.entries()["silver.g"].version
        assert lab.run.latest_results()[JOINT].reads["silver.g"] == version.version

    for before in ("success", "failed"):
        run(story(before))


def test_R6_a_model_is_rebuilt_if_its_parent_is_rebuilt() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        lab.slow[G] = 0.2
        await lab.follow(S)
        first = asyncio.create_task(lab.follow(G))
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await lab.follow(S, attempt=2, along=[TS])).state == "success"
        assert (await lab.follow(G, attempt=2, along=[TG])).state == "success"
        entries = lab.run.entries()
        assert entries["silver.g"].version.inputs == {"silver.s": entries["silver.s"].version.version}

    run(story())


def test_R4_a_shared_runner_does_not_build_what_another_runner_is_building() -> None:
    async def story() -> None:
        lab = Lab({**CHAIN, **a_model("x"), **a_model("y", "x"), **a_model("z")}, last=frozenset({Z}))
        lab.bad |= {S: "error", X: "error"}
        lab.slow[Z] = 5
        busy = asyncio.create_task(lab.follow(Z))
        await states(lab.follow(S), lab.follow(X))
        lab.bad.clear()
        assert (await lab.follow(S, attempt=2)).state == "success"
        lab.slow[G] = 10
        alone = asyncio.create_task(lab.follow(G))
        assert (await busy).state == "success"
        assert (await lab.follow(X, attempt=2)).state == "success"
        assert (await lab.follow(Y)).state == "success"
        assert (await alone).state == "success"
        assert lab.started == ["shared", "s/2", "g/1", "x/2", "shared"]
        assert [number for number, node in lab.built if node == G] == [3], "by the runner that was already building it"

    run(story())


def test_a_cleared_task_does_not_wait_for_a_shared_runner_that_does_not_build_it() -> None:
    async def story() -> None:
        lab = Lab({**a_model("s"), **a_model("x"), **a_model("y", "x")})
        lab.bad |= {S: "error", X: "error"}
        await states(lab.follow(S), lab.follow(X))
        lab.bad.clear()
        assert (await lab.follow(X, attempt=2)).state == "success"
        lab.slow[Y] = 3
        busy = asyncio.create_task(lab.follow(Y))
        while not any(r.node == Y and r.status == "running" for r in lab.watch.results.values()):
            await asyncio.sleep(0.01)
        assert (await asyncio.wait_for(lab.follow(S, attempt=2), 2)).state == "success"
        busy.cancel()

    run(story())


def test_a_model_whose_unit_test_failed_is_not_built_by_a_later_shared_runner() -> None:
    async def story() -> None:
        unit = "unit_test.p.u"
        lab = Lab({**CHAIN, **a_model("x")}, units={unit: G})
        lab.bad |= {unit: "failed", X: "error"}
        await lab.follow(S)
        assert await states(lab.follow(G, unit), lab.follow(X)) == ["failed", "failed"]
        assert lab.started == ["shared"], "the failed unit test decides the model's result too"
        lab.bad.pop(X)
        assert (await lab.follow(X, attempt=2)).state == "success"
        await lab.start(lab.watch.pin, Order(name="shared", generation=9, kind="shared", size="small"), print)
        while lab.living:
            await asyncio.sleep(0.01)
        assert G not in [node for _, node in lab.built]
        lab.bad.clear()
        assert (await lab.follow(G, unit, attempt=2)).state == "success"

    run(story())


def test_a_test_that_a_failed_try_of_its_model_skipped_has_no_result_yet() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        lab.bad[G] = "error"
        await lab.follow(S)
        for attempt in (1, 2):
            assert (await lab.follow(G, attempt=attempt, along=[TG])).state == "failed"
        lab.bad.clear()
        assert (await lab.follow(G, attempt=3, along=[TG])).state == "success"
        assert (await lab.follow(TG)).state == "success"
        assert lab.started == ["shared", "g/2", "g/3"]

    run(story())


def test_a_lost_reply_to_a_follower_s_last_write_is_not_taken_for_a_later_try() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        lab.s3.fault = lambda call: "retried" if '"runner":1' in call.body else None
        assert (await lab.follow(S)).state == "success"

    run(story())


def test_a_later_try_supersedes_an_earlier_one() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        lab.slow[S] = 0.3
        first = asyncio.create_task(lab.follow(S))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(lab.follow(S, attempt=2))
        assert sorted([(await first).state, (await second).state]) == ["success", "superseded"]

    run(story())


def test_a_runner_that_can_not_start_is_tried_once_and_fails_all_waiting_tasks() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, stillborn=True)
        ended = await asyncio.gather(*(lab.follow(node) for node in (S, X, Y)))
        assert {one.state for one in ended} == {"failed"}
        assert all("could not start" in one.text and "the end of its output" in one.text for one in ended)
        assert lab.started == ["shared"]

    run(story())


def test_a_task_that_is_cleared_after_a_failed_start_does_not_report_it_again() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, stillborn=True)
        assert [(await lab.follow(S)).state, lab.started] == ["failed", ["shared"]]
        lab.stillborn = False
        # cleared at once, after the cause has been fixed
        assert (await lab.follow(S, attempt=2)).state == "success"

    run(story())


def test_docs_are_generated_after_failures_were_fixed() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        lab.bad[G] = "error"
        await lab.follow(S)
        for attempt in range(1, 6):
            assert (await lab.follow(G, attempt=attempt)).state == "failed"
        lab.bad.clear()
        assert (await lab.follow(G, attempt=6, along=[TG])).state == "success"
        for node in (TG, K, DOCS_NODE):
            assert (await lab.follow(node)).state == "success"

    run(story())


def test_docs_are_generated_again_if_a_model_was_rebuilt() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        for node in (S, TS, G, TG, K, DOCS_NODE):
            assert (await lab.follow(node)).state == "success"
        assert (await lab.follow(K, attempt=2)).state == "success"
        assert (await lab.follow(DOCS_NODE, attempt=2)).state == "success"
        described = lab.run.latest_results()[DOCS_NODE].reads
        assert described == {t: e.version.version for t, e in lab.run.entries().items()}

    run(story())


def test_a_task_that_is_not_selected_ends_skipped() -> None:
    async def story() -> None:
        lab = Lab(CHAIN)
        lab.watch.pin = lab.watch.pin.model_copy(update={"nodes": (S,), "select": "s"})
        ended = await Follow(lab.watch, Job("g", 1, (G,), (), "g"), 3).run()
        assert (ended.state, "not selected" in ended.text) == ("skipped", True)

    run(story())


def test_a_model_that_runs_out_of_memory_gets_a_larger_runner_and_the_rest_a_shared_one() -> None:
    async def story() -> None:
        lab = Lab({**CHAIN, **a_model("x"), **a_model("y", "x")}, heavy={G: "medium"})
        ends = await states(*(lab.follow(node) for node in (S, X, Y)), lab.follow(G, along=[TG]), lab.follow(TS))
        assert ends == ["success"] * 5
        assert await states(lab.follow(TG), lab.follow(K), lab.follow(DOCS_NODE)) == ["success"] * 3
        assert sorted(node for _, node in lab.built) == sorted([S, G, K, X, Y])
        assert dict(zip(lab.started, lab.sizes, strict=True))["g/1"] == "medium"
        assert lab.started.count("g/1") == 1
        assert any("starting a runner of size medium for g alone" in message for message in lab.messages)

    run(story())


def test_a_model_that_runs_out_of_memory_in_the_next_size_too_fails_and_the_others_continue() -> None:
    async def story() -> None:
        lab = Lab({**CHAIN, **a_model("x"), **a_model("y", "x")}, heavy={G: "large"})
        g, *others = await asyncio.gather(
            lab.follow(G, along=[TG]), *(lab.follow(node) for node in (S, X, Y, TS)), return_exceptions=False
        )
        assert g.state == "failed"
        assert "it ran out of memory" in g.text
        assert "more memory" in g.text
        assert [ended.state for ended in others] == ["success"] * 4
        assert {name: lab.started.count(name) for name in lab.started}["g/1"] == 1
        assert K not in {node for _, node in lab.built}
        # after a clear, it continues from where it failed
        lab.heavy.clear()
        assert (await lab.follow(G, attempt=2, along=[TG])).state == "success"
        assert await states(lab.follow(TG), lab.follow(K)) == ["success", "success"]

    run(story())


def test_a_lost_runner_of_a_single_task_is_replaced_only_if_it_ended_for_a_transient_reason() -> None:
    async def story(passing: bool, starts: int) -> None:
        lab = Lab(CHAIN, deadly={G}, passing=passing, per_model=True)
        assert (await lab.follow(S)).state == "success"
        ended = await lab.follow(G, restarts=2)
        assert ended.state == "failed"
        assert "it was killed" in ended.text
        assert lab.started.count("g/1") == starts

    run(story(passing=True, starts=3))
    run(story(passing=False, starts=1))


def test_a_model_s_own_runner_also_runs_its_tests_and_the_test_task_follows_that_runner() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, per_model=True)
        assert (await lab.follow(S, along=[TS])).state == "success"
        assert await states(lab.follow(TS), lab.follow(G, along=[TG])) == ["success", "success"]
        assert await states(lab.follow(TG), lab.follow(K), lab.follow(DOCS_NODE)) == ["success"] * 3
        assert lab.started == ["s/1", "g/1", "k/1", "docs/1"]
        # a test task that is cleared alone gets a runner that only runs the tests
        assert (await lab.follow(TG, attempt=2)).state == "success"
        assert lab.started[4:] == ["tg/2"]
        assert [node for _, node in lab.built] == [S, G, K]

    run(story())


def test_joint_tests_share_a_runner_if_each_model_has_its_own() -> None:
    async def story() -> None:
        nodes = {**a_model("s"), **a_model("x"), **a_test("joint", "s", "x"), **a_test("tj", "s", "x")}
        lab = Lab(nodes, per_model=True, joint=frozenset({JOINT, "test.p.tj"}))
        assert await states(lab.follow(S), lab.follow(X)) == ["success", "success"]
        assert await states(lab.follow(JOINT), lab.follow("test.p.tj")) == ["success", "success"]
        assert len(lab.started) == 3
        assert lab.run.runners()[-1].nodes == (JOINT, "test.p.tj")

    run(story())


def test_R9_a_second_triggerer_starts_no_second_runner() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, slow={S: 0.2})
        first = asyncio.create_task(lab.follow(S))
        mine, theirs = lab.watch, lab.another_watch()
        lab.watch = theirs
        assert (await lab.follow(G)).state == "success"
        lab.watch = mine
        assert (await first).state == "success"
        assert lab.started == ["shared"]

    run(story())


def test_R9_a_restarted_triggerer_finds_how_runners_ended() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, heavy={G: "medium"})
        first = asyncio.create_task(lab.follow(G, along=[TG]))
        while not lab.watch.endings:
            await asyncio.sleep(0.005)
        first.cancel()
        lab.watch = lab.another_watch()
        assert (await lab.follow(G, along=[TG])).state == "success"
        assert lab.sizes[-1] == "medium"

    run(story())


def test_R10_a_runner_is_not_stopped_when_a_task_is_cancelled_if_another_one_follows_it() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, slow={G: 5})
        assert (await lab.follow(S)).state == "success"
        g, k = asyncio.create_task(lab.follow(G)), asyncio.create_task(lab.follow(K))
        while len(lab.watch.followers) < 2 or not all(lab.watch.followers.values()):
            await asyncio.sleep(0.005)
        await lab.clear(g, "g/1")
        assert lab.stopped == []
        await lab.clear(k, "k/1", elsewhere=1)
        assert lab.stopped == [], "a task in another triggerer still follows it"
        await lab.clear(asyncio.create_task(lab.follow(K)), "k/1")
        assert lab.stopped == [1]

    run(story())


def test_R9_a_runner_for_one_task_keeps_its_nodes_until_its_ending_is_recorded() -> None:
    async def story() -> None:
        lab = Lab(CHAIN, deadly={G}, per_model=True)
        assert (await lab.follow(S)).state == "success"
        g = asyncio.create_task(lab.follow(G, along=[TG]))
        while len(lab.run.runners()) < 2:
            await asyncio.sleep(0.001)
        if not lab.run.endings():
            assert {G, TG} <= for_other_runners(lab.run)
        assert (await g).state == "failed"
        assert set(lab.run.endings()) == {1, 2}, "processes that cannot query ECS read the endings there"
        assert for_other_runners(lab.run) == frozenset()

    run(story())
