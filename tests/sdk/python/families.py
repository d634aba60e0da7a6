"""Programs about several orchestrations: children, events, ends that go down the tree, rewind and restart.

Part of `programs.py`, which says how they are run.
"""

import collections
import re
from datetime import timedelta

import grpc

from durabletask import history as h
from durabletask import task
from durabletask.client import OrchestrationStatus

from support import Hub, check_history, equal, finish, has_status, only, shape, until

FAMILIES = {}


def program(function):
    FAMILIES[function.__name__] = function
    return function


def policy(attempts):
    return task.RetryPolicy(first_retry_interval=timedelta(milliseconds=50), max_number_of_attempts=attempts)


def raises(code, call):
    """The call must be refused with this code, wrapped by the SDK or not."""
    try:
        call()
    except grpc.RpcError as error:
        equal(error.code(), code, error.details())
    except Exception as error:
        equal(getattr(error.__cause__, "code", lambda: None)(), code, str(error))
    else:
        raise AssertionError(f"expected {code}")


@program
def sub_orchestrations(hub: Hub):
    """Children one after the other, at once and three deep: ids, parents, results, histories (A3, R4.34 to R4.36)."""
    def child(ctx, value):
        return [value, ctx.parent_instance_id]

    def one(ctx, value):
        return (yield ctx.call_sub_orchestrator(child, input=value))

    def many(ctx, width):
        return (yield task.when_all([ctx.call_sub_orchestrator(child, input=n) for n in range(width)]))

    def deep(ctx, levels):
        if levels == 0:
            return ctx.instance_id
        return (yield ctx.call_sub_orchestrator(deep, input=levels - 1))

    def named(ctx, _):
        yield ctx.call_sub_orchestrator(child, input="n", instance_id="my-own-id", version="9.1")

    with hub.client() as client, hub.worker([child, one, many, deep, named]):
        for value in ["text", 0, False, "", None, {"a": [1]}]:
            parent = client.schedule_new_orchestration(one, input=value)
            equal(finish(client, parent).get_output(), [value, parent], "what the child was given, and its parent")
        events = check_history(hub, client, parent)
        equal(shape(events), ["OrchestratorStarted", "ExecutionStarted", "SubOrchestrationInstanceCreated",
                              "OrchestratorStarted", "SubOrchestrationInstanceCompleted", "ExecutionCompleted"], "history (A3)")
        created, completed = events[2], events[4]
        equal(created.instance_id, f"{parent}:{created.event_id:04x}", "the child's id (R4.35)")
        equal((completed.task_scheduled_id, completed.event_id), (created.event_id, -1), "the answer (R4.3)")

        started = check_history(hub, client, created.instance_id)[1]
        of = started.parent_instance
        equal((of.task_scheduled_id, of.name, of.orchestration_instance.instance_id), (created.event_id, "one", parent),
              "the parent in executionStarted (R4.34)")
        equal(of.orchestration_instance.execution_id, events[1].orchestration_instance.execution_id, "its execution id")
        assert re.fullmatch("[0-9a-f]{32}", started.orchestration_instance.execution_id), f"{started} (R2.12)"

        width = 40
        parent = client.schedule_new_orchestration(many, input=width)
        equal(finish(client, parent).get_output(), [[n, parent] for n in range(width)], "results in order")
        answers = only(check_history(hub, client, parent), h.SubOrchestrationInstanceCompletedEvent)
        equal(len({answer.task_scheduled_id for answer in answers}), width, "each child answers once (S9)")
        equal(len(answers), width, "answers")

        parent = client.schedule_new_orchestration(deep, input=3)
        equal(finish(client, parent).get_output(), f"{parent}:0001:0001:0001", "the id of the deepest one")

        finish(client, client.schedule_new_orchestration(named))
        state = client.get_orchestration_state("my-own-id")
        equal(state.get_output()[0], "n", "a child with an id of its own")
        equal(check_history(hub, client, "my-own-id")[1].version, "9.1", "its version (R7.15)")


@program
def sub_orchestration_failure(hub: Hub):
    """Children that fail: retried under the same id, caught, and ids that are in use (R4.37 to R4.39)."""
    attempts = collections.Counter()

    def flaky(ctx, key):
        if not ctx.is_replaying:
            attempts[key] += 1
        if attempts[key] < 3:
            raise ValueError(f"attempt {attempts[key]} of {key}")
        return attempts[key]

    def broken(ctx, _):
        raise KeyError("no luck")

    def persistent(ctx, key):
        return (yield ctx.call_sub_orchestrator(flaky, input=key, retry_policy=policy(5)))

    def careless(ctx, _):
        yield ctx.call_sub_orchestrator(broken)

    def careful(ctx, _):
        try:
            yield ctx.call_sub_orchestrator(broken)
        except task.TaskFailedError as error:
            return [error.details.error_type, error.details.message]

    def waits(ctx, _):
        return (yield ctx.wait_for_external_event("go"))

    def wants(ctx, instance):
        try:
            return (yield ctx.call_sub_orchestrator(waits, instance_id=instance))
        except task.TaskFailedError as error:
            return error.details.message

    with hub.client() as client, hub.worker([flaky, broken, persistent, careless, careful, waits, wants]):
        parent = client.schedule_new_orchestration(persistent, input="wins")
        equal(finish(client, parent).get_output(), 3, "the third attempt wins")
        events = check_history(hub, client, parent)
        equal(len({e.instance_id for e in only(events, h.SubOrchestrationInstanceCreatedEvent)}), 1, "one id (R4.37)")
        equal([e.failure_details.message for e in only(events, h.SubOrchestrationInstanceFailedEvent)],
              ["attempt 1 of wins", "attempt 2 of wins"], "failures")

        state = finish(client, client.schedule_new_orchestration(careless), OrchestrationStatus.FAILED)
        assert "no luck" in str(state.failure_details), f"{state.failure_details}"
        equal(finish(client, client.schedule_new_orchestration(careful)).get_output(), ["builtins.KeyError", "'no luck'"],
              "the failure as the parent saw it")

        first = client.schedule_new_orchestration(wants, input="wanted")
        until("the child is there", lambda: client.get_orchestration_state("wanted"))
        second = client.schedule_new_orchestration(wants, input="wanted")
        assert "already exists" in finish(client, second).get_output(), "an id in use (R4.38)"
        client.raise_orchestration_event("wanted", "go", data="went")
        equal(finish(client, first).get_output(), "went", "whoever came first has the child")
        third = client.schedule_new_orchestration(wants, input="wanted")
        until("the id is used again (R4.37)",
              lambda: client.get_orchestration_state("wanted").runtime_status != OrchestrationStatus.COMPLETED)
        client.terminate_orchestration("wanted", output="stop")
        assert "stop" in finish(client, third).get_output(), "a child that was terminated (R4.39)"

        parent = client.schedule_new_orchestration(wants, input="x" * 101)
        assert "length" in finish(client, parent).get_output(), "an id that is too long (R2.4)"


@program
def events_between(hub: Hub):
    """Events from one orchestration to another, to itself, to nobody (R4.23, R4.24, S7)."""
    count = 30

    def sends(ctx, receiver):
        for number in range(count):
            ctx.send_event(receiver, "number", data=number)
        ctx.send_event("nobody", "number", data=1)
        ctx.send_event(ctx.instance_id, "mine")
        yield ctx.wait_for_external_event("mine")
        return (yield ctx.wait_for_external_event("thanks"))

    def receives(ctx, sender):
        numbers = []
        for _ in range(count):
            numbers.append((yield ctx.wait_for_external_event("number")))
        ctx.send_event(sender, "thanks", data=numbers)

    def counts(ctx, number):
        if number == 5:
            return number
        ctx.send_event(ctx.instance_id, "next", data=number + 1)
        ctx.continue_as_new((yield ctx.wait_for_external_event("next")))

    with hub.client() as client, hub.worker([sends, receives, counts]):
        client.schedule_new_orchestration(receives, input="sender", instance_id="receiver")
        client.schedule_new_orchestration(sends, input="receiver", instance_id="sender")
        equal(finish(client, "sender").get_output(), list(range(count)), "events in order, each once (S7)")
        sent = only(check_history(hub, client, "sender"), h.EventSentEvent)
        equal([(e.instance_id, e.name, e.input) for e in sent],
              [("receiver", "number", str(n)) for n in range(count)] + [("nobody", "number", "1"), ("sender", "mine", None)],
              "eventSent (R4.23)")
        equal(finish(client, client.schedule_new_orchestration(counts, input=0)).get_output(), 5, "to itself (R4.56)")


@program
def terminate_tree(hub: Hub):
    """Terminations with and without the children, through a child that has ended (R2.50 to R2.52)."""
    def leaf(ctx, _):
        yield ctx.wait_for_external_event("never")

    def passing(ctx, low):
        ctx.call_sub_orchestrator(leaf, instance_id=low)
        return "early"

    def top(ctx, name):
        yield ctx.call_sub_orchestrator(passing, input=f"{name}-low", instance_id=f"{name}-passing")
        yield task.when_all([ctx.call_sub_orchestrator(leaf, instance_id=f"{name}-leaf-{n}") for n in range(3)])

    with hub.client() as client, hub.worker([leaf, passing, top]):
        for name, recursive in [("tree", True), ("alone", False)]:
            client.schedule_new_orchestration(top, input=name, instance_id=name)
            others = [f"{name}-low", *[f"{name}-leaf-{n}" for n in range(3)]]
            for other in others:
                until(f"{other} is there", lambda: client.get_orchestration_state(other))
                has_status(client, other, OrchestrationStatus.RUNNING)
            client.terminate_orchestration(name, output="enough", recursive=recursive)
            finish(client, name, OrchestrationStatus.TERMINATED)
            equal(finish(client, f"{name}-passing").get_output(), "early", "a child that had ended")
            for other in others:
                if recursive:
                    state = finish(client, other, OrchestrationStatus.TERMINATED)
                    equal(state.get_output(), "enough", f"output of {other} (R2.51)")
                else:
                    equal(client.get_orchestration_state(other).runtime_status, OrchestrationStatus.RUNNING,
                          f"{other} (R2.52)")


@program
def rewind(hub: Hub):
    """A failed instance tries again: activities, children, twice, without a reason (R2.60 to R2.64)."""
    calls = collections.Counter()
    failures = collections.Counter()

    def good(_, key):
        calls[key, "good"] += 1
        return "good"

    def bad(_, key):
        calls[key, "bad"] += 1
        if failures[key] > 0:
            failures[key] -= 1
            raise ValueError(f"bad {key}")
        return "bad"

    def works(ctx, key):
        first = yield ctx.call_activity(good, input=key)
        return [first, (yield ctx.call_activity(bad, input=key))]

    def retries(ctx, key):
        return (yield ctx.call_activity(bad, input=key, retry_policy=policy(2)))

    def parent(ctx, key):
        return (yield ctx.call_sub_orchestrator(works, input=key, instance_id=f"{key}-child"))

    def waits(ctx, _):
        yield ctx.wait_for_external_event("never")

    def fails_once(client, orchestrator, key, count=1):
        failures[key] = count
        client.schedule_new_orchestration(orchestrator, input=key, instance_id=key)
        return finish(client, key, OrchestrationStatus.FAILED)

    with hub.client() as client, hub.worker([works, retries, parent, waits], [good, bad]):
        fails_once(client, works, "one")
        client.rewind_orchestration("one", reason="mended")
        state = finish(client, "one")
        equal(state.get_output(), ["good", "bad"], "output")
        equal((calls["one", "good"], calls["one", "bad"]), (1, 2), "runs (R2.63)")
        if not hub.reference:
            rewound = only(check_history(hub, client, "one"), h.ExecutionRewoundEvent)
            equal([e.reason for e in rewound], ["mended"], "the reason (R2.62)")

        fails_once(client, works, "two", count=2)
        client.rewind_orchestration("two")
        finish(client, "two", OrchestrationStatus.FAILED)
        client.rewind_orchestration("two")
        equal(finish(client, "two").get_output(), ["good", "bad"], "the second rewind")
        equal((calls["two", "good"], calls["two", "bad"]), (1, 3), "runs")

        fails_once(client, parent, "family")
        client.rewind_orchestration("family")
        equal(finish(client, "family").get_output(), ["good", "bad"], "a failed child is rewound (R2.64)")
        equal((calls["family", "good"], calls["family", "bad"]), (1, 2), "runs")
        finish(client, "family-child")

        # This SDK retries under one id, so the attempts before the last can stay where they are.
        fails_once(client, retries, "retried", count=2)
        client.rewind_orchestration("retried")
        equal(finish(client, "retried").get_output(), "bad", "after all attempts had failed")

        client.schedule_new_orchestration(waits, instance_id="waits")
        has_status(client, "waits", OrchestrationStatus.RUNNING)
        raises(grpc.StatusCode.FAILED_PRECONDITION, lambda: client.rewind_orchestration("waits"))
        raises(grpc.StatusCode.FAILED_PRECONDITION, lambda: client.rewind_orchestration("one"))
        raises(grpc.StatusCode.NOT_FOUND, lambda: client.rewind_orchestration("nobody"))


@program
def restart(hub: Hub):
    """An instance starts again, under its id or another (R2.67 to R2.71)."""
    runs = collections.Counter()

    def works(ctx, value):
        if not ctx.is_replaying:
            runs[ctx.instance_id] += 1
        yield ctx.create_timer(timedelta(milliseconds=1))
        if value == "fail":
            raise ValueError("as asked")
        return value

    def waits(ctx, _):
        yield ctx.wait_for_external_event("never")

    with hub.client() as client, hub.worker([works, waits]):
        client.schedule_new_orchestration(works, input={"a": 1}, instance_id="again", tags={"t": "1"})
        before = finish(client, "again")
        for _ in range(2):
            equal(client.restart_orchestration("again"), "again", "the id (R2.70)")
            equal(finish(client, "again").get_output(), {"a": 1}, "the original input")
        state = client.get_orchestration_state("again")
        assert state.created_at > before.created_at, f"{state.created_at} is not new"
        history = check_history(hub, client, "again")
        equal(history[1].tags, {"t": "1"}, "tags (R2.70)")

        other = client.restart_orchestration("again", restart_with_new_instance_id=True)
        assert re.fullmatch("[0-9a-f]{32}", other), f"the new id is {other} (R2.70)"
        equal(finish(client, other).get_output(), {"a": 1}, "the original input")

        client.schedule_new_orchestration(works, input="fail", instance_id="failed")
        finish(client, "failed", OrchestrationStatus.FAILED)
        client.restart_orchestration("failed")
        finish(client, "failed", OrchestrationStatus.FAILED)

        client.schedule_new_orchestration(waits, instance_id="waits")
        has_status(client, "waits", OrchestrationStatus.RUNNING)
        raises(grpc.StatusCode.FAILED_PRECONDITION, lambda: client.restart_orchestration("waits"))
        twin = client.restart_orchestration("waits", restart_with_new_instance_id=True)
        has_status(client, twin, OrchestrationStatus.RUNNING)
        equal(client.get_orchestration_state("waits").runtime_status, OrchestrationStatus.RUNNING, "the original (R2.69)")
        client.terminate_orchestration("waits")
        finish(client, "waits", OrchestrationStatus.TERMINATED)
        client.restart_orchestration("waits")
        has_status(client, "waits", OrchestrationStatus.RUNNING)
        raises(grpc.StatusCode.NOT_FOUND, lambda: client.restart_orchestration("nobody"))
