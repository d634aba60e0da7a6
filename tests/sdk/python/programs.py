"""Durable Task programs in Python, run unmodified against Durahub.

    python programs.py NAME --endpoint HOST:PORT --task-hub HUB

runs one program and prints `ok NAME`, or exits non-zero and says what was wrong. `--list` names them
all. Each program wants a task hub of its own, since its workers take everything that the hub holds
(R3.7). `tests/sdk.rs` installs the SDK, starts the server and runs them all.

`--reference` says that the server is the SDK's own in-memory one (`durabletask.testing`).
The rules cited are those of `proto/CONTRACT.md`.
"""

import argparse
import collections
import faulthandler
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone

import grpc

import durabletask.internal.orchestrator_service_pb2 as pb
from durabletask import history as h
from durabletask import task
from durabletask.client import OrchestrationQuery, OrchestrationStatus, TaskHubGrpcClient
from durabletask.worker import TaskHubGrpcWorker

from entities import ENTITIES
from families import FAMILIES
from support import (
    PATIENCE, Hub, check_history, equal, finish, has_status, only, refused, register, report, shape, until, utc,
)

PROGRAMS = {**FAMILIES, **ENTITIES}
# program -> a function of (hub, role) that is the worker of that program in a process of its own
WORKERS = {}


def program(function):
    PROGRAMS[function.__name__] = function
    return function


def worker_of(name):
    def keep(function):
        WORKERS[name] = function
        return function
    return keep


def echo(ctx, value):
    """An orchestrator that gives back what it was given. Also a clock: once one that was started now
    has finished, the server has had its time to do what it should not have done."""
    return value


def run_echo(client):
    state = finish(client, client.schedule_new_orchestration(echo, input="tick"))
    equal(state.get_output(), "tick", "echo")


# --- activities ---------------------------------------------------------------------------------


@program
def chain(hub: Hub):
    """Three activities in a row: output, state and the exact history (R4.1 to R4.6, R2.24, R2.25, R2.93)."""
    def increase(_, number):
        return number + 1

    def double(_, number):
        return number * 2

    def describe(_, number):
        return f"the number {number} \u2014 \u00e4\u00f6\u00fc \U0001f680"

    def chained(ctx, number):
        number = yield ctx.call_activity(increase, input=number)
        number = yield ctx.call_activity(double, input=number)
        return (yield ctx.call_activity(describe, input=number))

    with hub.client() as client, hub.worker([chained], [increase, double, describe]):
        assert client.get_orchestration_state("nobody") is None, "an unknown id exists (R2.24)"
        if not hub.reference:
            equal(client.get_orchestration_history("nobody"), [], "the history of an unknown id (R2.93)")

        instance = client.schedule_new_orchestration(chained, input=20, instance_id="chain-1")
        equal(instance, "chain-1", "the id in the answer (R2.1)")
        state = finish(client, instance)
        equal(state.get_output(), "the number 42 \u2014 \u00e4\u00f6\u00fc \U0001f680", "output")
        equal(state.get_input(), 20, "input")
        equal(state.name, "chained", "name")
        equal(state.serialized_custom_status, None, "custom status")
        assert state.created_at <= state.last_updated_at, f"{state.created_at} > {state.last_updated_at} (R2.29)"

        bare = client.get_orchestration_state(instance, fetch_payloads=False)
        equal((bare.serialized_input, bare.serialized_output), (None, None), "payloads that nobody asked for (R2.26)")

        events = check_history(hub, client, instance)
        turn = ["OrchestratorStarted", "TaskCompleted"]
        equal(shape(events), ["OrchestratorStarted", "ExecutionStarted", "TaskScheduled", *turn, "TaskScheduled", *turn,
                              "TaskScheduled", *turn, "ExecutionCompleted"], "history (R4.2)")
        equal([(e.name, json.loads(e.input)) for e in only(events, h.TaskScheduledEvent)],
              [("increase", 20), ("double", 21), ("describe", 42)], "scheduled tasks")
        equal([json.loads(e.result) for e in only(events, h.TaskCompletedEvent)],
              [21, 42, state.get_output()], "results")
        if not hub.reference:
            equal([e.event_id for e in events if e.event_id >= 0], [0, 1, 2, 3, 4], "event ids (R4.3, R4.4)")


@program
def fan_out(hub: Hub):
    """A hundred activities at once, joined: every result arrives, once, in the right place."""
    width = 100

    def square(_, number):
        return number * number

    def spread(ctx, width):
        results = yield task.when_all([ctx.call_activity(square, input=n) for n in range(width)])
        return results

    with hub.client() as client, hub.worker([spread], [square]):
        instance = client.schedule_new_orchestration(spread, input=width)
        equal(finish(client, instance).get_output(), [n * n for n in range(width)], "results in order")
        events = check_history(hub, client, instance)
        equal(len(only(events, h.TaskScheduledEvent)), width, "scheduled")
        equal(sorted(json.loads(e.result) for e in only(events, h.TaskCompletedEvent)),
              [n * n for n in range(width)], "each result once (S5)")


@program
def retry(hub: Hub):
    """Failing activities: retries, the failure as the orchestrator and the client see it (R4.19, R4.30)."""
    attempts = collections.Counter()

    def flaky(_, key):
        attempts[key] += 1
        if attempts[key] < 3:
            raise ValueError(f"attempt {attempts[key]} of {key}")
        return attempts[key]

    def broken(_, key):
        attempts[key] += 1
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise ValueError("no luck with \u201cquotes\u201d") from cause

    def policy(attempts):
        return task.RetryPolicy(first_retry_interval=timedelta(milliseconds=50), max_number_of_attempts=attempts,
                                backoff_coefficient=2)

    def persistent(ctx, key):
        return (yield ctx.call_activity(flaky, input=key, retry_policy=policy(5)))

    def careless(ctx, key):
        yield ctx.call_activity(broken, input=key, retry_policy=policy(3))

    def careful(ctx, key):
        try:
            yield ctx.call_activity(broken, input=key)
        except task.TaskFailedError as error:
            details = error.details
            return [details.error_type, details.message, details.inner_failure.error_type, details.inner_failure.message]

    def clumsy(ctx, _):
        raise IndexError("my own fault")

    with hub.client() as client, hub.worker([persistent, careless, careful, clumsy], [flaky, broken]):
        instance = client.schedule_new_orchestration(persistent, input="wins")
        equal(finish(client, instance).get_output(), 3, "the third attempt wins")
        equal(attempts["wins"], 3, "attempts")
        events = check_history(hub, client, instance)
        again = ["TaskScheduled", "OrchestratorStarted", "TaskFailed", "TimerCreated", "OrchestratorStarted", "TimerFired"]
        equal(shape(events), ["OrchestratorStarted", "ExecutionStarted", *again, *again, "TaskScheduled",
                              "OrchestratorStarted", "TaskCompleted", "ExecutionCompleted"], "history")
        equal(len({e.event_id for e in only(events, h.TaskScheduledEvent)}), 1, "task ids: retries reuse the first (R4.19)")
        equal([e.failure_details.message for e in only(events, h.TaskFailedEvent)],
              ["attempt 1 of wins", "attempt 2 of wins"], "failures")

        instance = client.schedule_new_orchestration(careless, input="loses")
        state = finish(client, instance, OrchestrationStatus.FAILED)
        equal(attempts["loses"], 3, "attempts")
        equal(state.serialized_output, None, "output of a failed instance")
        outer = state.failure_details
        assert outer.is_caused_by(task.TaskFailedError) and "no luck" in outer.message, f"{outer}"
        middle = outer.inner_failure
        equal((middle.error_type, middle.message), ("builtins.ValueError", "no luck with \u201cquotes\u201d"), "the failure")
        assert "broken" in middle.stack_trace, f"stack trace: {middle.stack_trace}"
        inner = middle.inner_failure
        equal((inner.error_type, inner.message), ("builtins.KeyError", "'the cause'"), "its cause (R4.30)")
        completed = check_history(hub, client, instance)[-1]
        equal(completed.failure_details, outer, "the failure in history and in the state (R4.8)")

        equal(finish(client, client.schedule_new_orchestration(careful, input="handled")).get_output(),
              ["builtins.ValueError", "no luck with \u201cquotes\u201d", "builtins.KeyError", "'the cause'"],
              "the failure as the orchestrator saw it")

        state = finish(client, client.schedule_new_orchestration(clumsy), OrchestrationStatus.FAILED)
        equal((state.failure_details.error_type, state.failure_details.message), ("builtins.IndexError", "my own fault"),
              "the orchestrator's own failure (R4.51)")


@program
def falsy(hub: Hub):
    """None, 0, False and empty things stay themselves as input, argument, result, event and output
    (R2.7, R3.35, R3.59, R7.12)."""
    def hand_back(_, value):
        return value

    def pass_on(ctx, value):
        argument = value
        result = yield ctx.call_activity(hand_back, input=argument)
        raised = yield ctx.wait_for_external_event("value")
        # repr tells 0 from False and "" from None where JSON would, too, but more plainly.
        ctx.set_custom_status([repr(argument), repr(result), repr(raised)])
        return raised

    with hub.client() as client, hub.worker([pass_on], [hand_back]):
        for value in [None, 0, False, "", [], {}]:
            instance = client.schedule_new_orchestration(pass_on, input=value)
            client.raise_orchestration_event(instance, "value", data=value)
            state = finish(client, instance)
            text = None if value is None else json.dumps(value)
            equal(state.get_custom_status(), [repr(value)] * 3, "as the orchestrator saw it")
            equal(state.get_output(), value, "output")
            equal(state.serialized_output, text, "output as text")
            equal(state.serialized_input, text, "input as text")
            events = check_history(hub, client, instance)
            if not hub.reference:
                equal([only(events, h.TaskScheduledEvent)[0].input, only(events, h.TaskCompletedEvent)[0].result,
                       only(events, h.EventRaisedEvent)[0].input, events[-1].result], [text] * 4, "texts in history")


@program
def large_payload(hub: Hub):
    """About 1 MiB, byte for byte, as input, argument, result, event and output (R7.11, R7.12, R1.24)."""
    seeded = random.Random(7)
    text = "".join(seeded.choices("abcdefghij0123456789 {}[]\"\\", k=1_000_000))

    def hand_back(_, value):
        return value

    def through_activity(ctx, value):
        return (yield ctx.call_activity(hand_back, input=value))

    def through_event(ctx, _):
        return (yield ctx.wait_for_external_event("blob"))

    with hub.client() as client, hub.worker([through_activity, through_event], [hand_back]):
        state = finish(client, client.schedule_new_orchestration(through_activity, input=text))
        assert state.get_input() == text, "the input changed on its way"
        assert state.get_output() == text, "the result changed on its way"

        instance = client.schedule_new_orchestration(through_event)
        client.raise_orchestration_event(instance, "blob", data=text)
        assert finish(client, instance).get_output() == text, "the event changed on its way"
        # A history of several MiB goes to a client in chunks below its limit of 4 MiB (R1.23, R2.92).
        assert only(check_history(hub, client, instance), h.EventRaisedEvent)[0].input == json.dumps(text), "history"


@program
def oversize_history(hub: Hub):
    """A turn that no longer fits the worker's 4 MiB: this instance fails and says so, the stream lives (R1.27, R3.31)."""
    if hub.reference:
        return
    runs = []

    def produce(_, number):
        runs.append(number)
        return "x" * 1_500_000

    def greedy(ctx, _):
        for number in range(4):
            yield ctx.call_activity(produce, input=number)

    with hub.client() as client, hub.worker([greedy, echo], [produce]):
        instance = client.schedule_new_orchestration(greedy)
        state = finish(client, instance, OrchestrationStatus.FAILED)
        assert state.failure_details and state.failure_details.message, "failed without a reason"
        equal(runs, [0, 1, 2], "activities run before the limit")
        run_echo(client)


# --- events, timers, generations ------------------------------------------------------------------


@program
def event_or_timer(hub: Hub):
    """An external event against a timer, either may win (R2.40 to R2.43, R4.45, R4.46)."""
    def race(ctx, seconds):
        approval = ctx.wait_for_external_event("Approval")
        timeout = ctx.create_timer(timedelta(seconds=seconds))
        if (yield task.when_any([approval, timeout])) is approval:
            return ["event", approval.get_result()]
        return ["timer", ctx.current_utc_datetime.isoformat()]

    with hub.client() as client, hub.worker([race, echo]):
        # Right after the start, perhaps before the first turn (R2.41).
        instance = client.schedule_new_orchestration(race, input=3600)
        client.raise_orchestration_event(instance, "Approval", data={"by": "me"})
        equal(finish(client, instance).get_output(), ["event", {"by": "me"}], "the event wins")
        raised = only(check_history(hub, client, instance), h.EventRaisedEvent)
        equal([(e.name, json.loads(e.input)) for e in raised], [("Approval", {"by": "me"})], "name as sent (R2.42)")

        # While it waits, with another spelling of the name: the server keeps it, the SDK ignores case.
        instance = client.schedule_new_orchestration(race, input=3600)
        client.wait_for_orchestration_start(instance)
        client.raise_orchestration_event(instance, "APPROVAL", data=2)
        equal(finish(client, instance).get_output(), ["event", 2], "the event wins again")
        equal([e.name for e in only(check_history(hub, client, instance), h.EventRaisedEvent)], ["APPROVAL"], "name")

        instance = client.schedule_new_orchestration(race, input=1)
        state = finish(client, instance)
        outcome, moment = state.get_output()
        equal(outcome, "timer", "the timer wins")
        assert state.last_updated_at - state.created_at >= timedelta(seconds=1), f"early: {state} (R4.46)"
        events = check_history(hub, client, instance)
        equal(shape(events), ["OrchestratorStarted", "ExecutionStarted", "TimerCreated", "OrchestratorStarted",
                              "TimerFired", "ExecutionCompleted"], "history")
        assert datetime.fromisoformat(moment).replace(tzinfo=timezone.utc) >= events[2].fire_at, "the clock of the turn"

        # Too late is no error and changes nothing (R2.43).
        client.raise_orchestration_event(instance, "Approval", data="too late")
        run_echo(client)
        if not hub.reference:
            equal(client.get_orchestration_state(instance), state, "a terminal instance (R2.29)")
        equal(shape(check_history(hub, client, instance)), shape(events), "history of a terminal instance (R4.52)")

        if not hub.reference:
            refused(grpc.StatusCode.NOT_FOUND,
                    lambda: client.raise_orchestration_event("nobody", "Approval"), "nobody")  # R2.44


@program
def timers(hub: Hub):
    """Timers in the past fire at once but in a later turn; several fire in the order of their due times (R4.45, R4.46)."""
    def sleepy(ctx, _):
        yield ctx.create_timer(ctx.current_utc_datetime - timedelta(hours=1))
        pending = {ctx.create_timer(timedelta(milliseconds=ms)): ms for ms in (900, 300, 600)}
        order = []
        while pending:
            fired = yield task.when_any(list(pending))
            order.append(pending.pop(fired))
        return order

    with hub.client() as client, hub.worker([sleepy]):
        instance = client.schedule_new_orchestration(sleepy)
        equal(finish(client, instance).get_output(), [300, 600, 900], "order")
        events = check_history(hub, client, instance)
        equal(shape(events)[:5], ["OrchestratorStarted", "ExecutionStarted", "TimerCreated", "OrchestratorStarted",
                                  "TimerFired"], "the past timer fires in a turn of its own (R4.45)")


@program
def continue_as_new(hub: Hub):
    """A loop of generations: state is handed on, events are kept in order, history starts over
    (R4.10, R4.55 to R4.57, R4.59, R4.60, R2.28, R2.39, R2.12)."""
    generations, items = 25, 10
    ran = collections.Counter()

    def step(_, number):
        ran[number] += 1
        return number + 1

    def counter(ctx, number):
        number = yield ctx.call_activity(step, input=number)
        if number < generations:
            ctx.continue_as_new(number)
            return None
        return number

    def collect(ctx, got):
        got.append((yield ctx.wait_for_external_event("item")))
        if len(got) < items:
            ctx.continue_as_new(got, save_events=True)
            return None
        return got

    def named(ctx, generation):
        yield ctx.wait_for_external_event("go")
        if generation == 0:
            ctx.continue_as_new(1)

    with hub.client() as client, hub.worker([counter, collect, named], [step]):
        instance = client.schedule_new_orchestration(counter, input=0)
        state = finish(client, instance)
        equal(state.get_output(), generations, "output")
        equal(state.get_input(), generations - 1, "the input of the last generation (R2.28)")
        equal(dict(ran), {n: 1 for n in range(generations)}, "each generation ran its activity once")
        events = check_history(hub, client, instance)
        equal(shape(events), ["OrchestratorStarted", "ExecutionStarted", "TaskScheduled", "OrchestratorStarted",
                              "TaskCompleted", "ExecutionCompleted"], "only the last generation is left (R4.10)")
        equal(events[1].name, "counter", "name (R4.55)")

        # Raised all at once: some arrive before a generation waits for them, some after it has ended (R4.56).
        instance = client.schedule_new_orchestration(collect, input=[])
        for number in range(items):
            client.raise_orchestration_event(instance, "item", data=number)
        equal(finish(client, instance).get_output(), list(range(items)), "no event lost, doubled or out of order (S7)")

        if not hub.reference:
            instance = client.schedule_new_orchestration(named, input=0)
            client.wait_for_orchestration_start(instance)

            def execution():
                events = client.get_orchestration_history(instance)
                return events[1].orchestration_instance.execution_id if len(events) > 1 else None

            first = execution()
            client.raise_orchestration_event(instance, "go")
            second = until("a new execution id (R4.55)", lambda: (found := execution()) != first and found)
            assert client.get_orchestration_state(instance).runtime_status in (
                OrchestrationStatus.RUNNING, OrchestrationStatus.PENDING), "status between generations (R4.60)"
            client.raise_orchestration_event(instance, "go")
            equal(finish(client, instance).get_input(), 1, "input")
            for found in (first, second):
                assert len(found) == 32 and set(found) <= set("0123456789abcdef"), f"execution id {found} (R2.12)"


@program
def scheduled_start(hub: Hub):
    """A start in the future waits for its time, one in the past does not (R2.5, R2.6)."""
    if hub.reference:
        return

    def now(ctx, _):
        return ctx.current_utc_datetime.isoformat()

    def waits(ctx, _):
        # Must wait: the SDK gives way to a termination only in an orchestrator that has not returned.
        yield ctx.wait_for_external_event("never")

    with hub.client() as client, hub.worker([now, waits, echo]):
        due = datetime.now(timezone.utc) + timedelta(seconds=2)
        instance = client.schedule_new_orchestration(now, start_at=due)
        run_echo(client)
        waiting = client.get_orchestration_state(instance)
        assert waiting.runtime_status == OrchestrationStatus.PENDING or datetime.now(timezone.utc) >= due, f"{waiting}"
        state = finish(client, instance)
        began = datetime.fromisoformat(state.get_output()).replace(tzinfo=timezone.utc)
        assert began >= due, f"due {due}, began {began} (R4.14)"
        assert began - due < timedelta(seconds=5), f"due {due}, but began only {began}"
        assert utc(state.created_at) < due, f"created {state.created_at}, which is when it was accepted (R4.15)"
        equal(check_history(hub, client, instance)[1].scheduled_start_timestamp, due, "executionStarted (R2.6)")
        with hub.stub() as (stub, headers):
            answer = stub.GetInstance(pb.GetInstanceRequest(instanceId=instance), metadata=headers)
            equal(answer.orchestrationState.scheduledStartTimestamp.ToDatetime(timezone.utc), due, "the state (R2.6)")

        finish(client, client.schedule_new_orchestration(now, start_at=datetime.now(timezone.utc) - timedelta(days=1)))

        # An event for an instance that has not begun is no error; its end can come before its time (R2.41, R2.48).
        instance = client.schedule_new_orchestration(waits, start_at=datetime.now(timezone.utc) + timedelta(hours=1))
        client.raise_orchestration_event(instance, "early")
        client.terminate_orchestration(instance, output="never mind")
        equal(finish(client, instance, OrchestrationStatus.TERMINATED).get_output(), "never mind", "output")


# --- control ----------------------------------------------------------------------------------------


@program
def suspend_resume(hub: Hub):
    """Suspend becomes visible, holds events, and resume delivers them in order (R2.55 to R2.59, R4.64 to R4.72)."""
    recorded = []
    go = threading.Event()

    def record(_, item):
        recorded.append(item)
        return item

    def hold(_, item):
        assert go.wait(PATIENCE)
        return item

    def collect(ctx, count):
        got = []
        for _ in range(count):
            item = yield ctx.wait_for_external_event("item")
            got.append((yield ctx.call_activity(record, input=item)))
            ctx.set_custom_status(len(got))
        return got

    def patient(ctx, _):
        return (yield ctx.call_activity(hold, input="held"))

    def stays_suspended(instance):
        run_echo(client)
        equal(client.get_orchestration_state(instance).runtime_status, OrchestrationStatus.SUSPENDED, "status")

    with hub.client() as client, hub.worker([collect, patient, echo], [record, hold]):
        # In the middle of its work.
        instance = client.schedule_new_orchestration(collect, input=3)
        client.raise_orchestration_event(instance, "item", data="a")
        until("the first item is done", lambda: client.get_orchestration_state(instance).serialized_custom_status == "1")
        client.suspend_orchestration(instance, reason="lunch")
        has_status(client, instance, OrchestrationStatus.SUSPENDED)
        client.suspend_orchestration(instance, reason="twice is once")  # R2.57
        client.raise_orchestration_event(instance, "item", data="b")
        client.raise_orchestration_event(instance, "item", data="c")
        stays_suspended(instance)
        equal(recorded, ["a"], "work done while suspended (R4.64)")
        client.resume_orchestration(instance, reason="back")
        equal(finish(client, instance).get_output(), ["a", "b", "c"], "held events come in order (R4.69)")
        equal(recorded, ["a", "b", "c"], "each activity ran once (R4.65)")
        events = check_history(hub, client, instance)
        if not hub.reference:
            equal([e.input for e in only(events, h.ExecutionSuspendedEvent)], ["lunch"], "reasons (R2.55, R4.68)")
            equal([e.input for e in only(events, h.ExecutionResumedEvent)], ["back"], "reasons (R2.55)")
            at = shape(events).index("ExecutionResumed")
            equal(shape(events)[at - 1:at + 3], ["OrchestratorStarted", "ExecutionResumed", "EventRaised", "EventRaised"],
                  "one turn (R4.69)")
        client.suspend_orchestration(instance)  # R2.57: terminal, so nothing happens
        client.resume_orchestration(instance)
        equal(client.get_orchestration_state(instance).runtime_status, OrchestrationStatus.COMPLETED, "status")

        # Right after the start (R2.59, R4.71).
        instance = client.schedule_new_orchestration(collect, input=1)
        client.suspend_orchestration(instance)
        has_status(client, instance, OrchestrationStatus.SUSPENDED)
        client.raise_orchestration_event(instance, "item", data="d")
        stays_suspended(instance)
        equal(recorded, ["a", "b", "c"], "work done while suspended")
        client.resume_orchestration(instance)
        equal(finish(client, instance).get_output(), ["d"], "output")

        # A running activity goes on, its result is held (R4.72).
        instance = client.schedule_new_orchestration(patient)
        client.wait_for_orchestration_start(instance)
        client.suspend_orchestration(instance)
        has_status(client, instance, OrchestrationStatus.SUSPENDED)
        go.set()
        stays_suspended(instance)
        client.resume_orchestration(instance)
        equal(finish(client, instance).get_output(), "held", "output")

        # Terminate needs no resume (R4.70).
        instance = client.schedule_new_orchestration(collect, input=1)
        client.suspend_orchestration(instance)
        has_status(client, instance, OrchestrationStatus.SUSPENDED)
        client.terminate_orchestration(instance, output="enough")
        equal(finish(client, instance, OrchestrationStatus.TERMINATED).get_output(), "enough", "output")

        if not hub.reference:
            refused(grpc.StatusCode.NOT_FOUND, lambda: client.suspend_orchestration("nobody"), "nobody")  # R2.58
            refused(grpc.StatusCode.NOT_FOUND, lambda: client.resume_orchestration("nobody"), "nobody")


@program
def terminate(hub: Hub):
    """Terminate: while waiting, right after the start, and with an activity at work (R2.47 to R2.50, R2.53, S8)."""
    at_work, go = threading.Event(), threading.Event()

    def hold(_, __):
        at_work.set()
        assert go.wait(PATIENCE)
        return "too late"

    def waits(ctx, _):
        yield ctx.wait_for_external_event("never")

    def works(ctx, _):
        return (yield ctx.call_activity(hold))

    with hub.client() as client, hub.worker([waits, works, echo], [hold]):
        instance = client.schedule_new_orchestration(waits)
        client.wait_for_orchestration_start(instance)
        client.terminate_orchestration(instance, output={"why": "enough", "zero": 0})
        state = finish(client, instance, OrchestrationStatus.TERMINATED)
        equal(state.get_output(), {"why": "enough", "zero": 0}, "output (R2.47)")
        events = check_history(hub, client, instance)
        if not hub.reference:
            equal([(json.loads(e.input), e.recurse) for e in only(events, h.ExecutionTerminatedEvent)],
                  [(state.get_output(), True)], "executionTerminated (R2.47)")
            equal(events[-1].orchestration_status, pb.ORCHESTRATION_STATUS_TERMINATED, "executionCompleted (R4.8)")

        # Terminal is final; and whatever comes too late, or for nobody, is no error (R2.43, R2.49).
        client.terminate_orchestration(instance, output="again")
        client.raise_orchestration_event(instance, "never", data=1)
        client.terminate_orchestration("nobody", output="?")
        run_echo(client)
        if not hub.reference:
            equal(client.get_orchestration_state(instance), state, "a terminal instance (S8, R2.29)")
        equal(shape(check_history(hub, client, instance)), shape(events), "its history (R4.52)")

        for number in range(10):
            instance = client.schedule_new_orchestration(waits)
            client.terminate_orchestration(instance, output=number)
            equal(finish(client, instance, OrchestrationStatus.TERMINATED).get_output(), number, "right after start (R2.48)")

        instance = client.schedule_new_orchestration(works)
        assert at_work.wait(PATIENCE), "the activity never began"
        client.terminate_orchestration(instance)
        state = finish(client, instance, OrchestrationStatus.TERMINATED)
        equal(state.serialized_output, None, "no output was given")
        length = len(client.get_orchestration_history(instance))
        go.set()
        run_echo(client)
        if not hub.reference:
            equal(client.get_orchestration_state(instance), state, "after the activity's result (R2.53)")
            equal(len(client.get_orchestration_history(instance)), length, "history after the activity's result")


@program
def custom_status(hub: Hub):
    """Visible with the first turn, changed while running, kept after the end, cleared by nothing (R2.33, R4.54, R4.86)."""
    def tells(ctx, last):
        ctx.set_custom_status({"step": 1, "of": 2})
        yield ctx.wait_for_external_event("on")
        ctx.set_custom_status("half way")
        yield ctx.wait_for_external_event("on")
        ctx.set_custom_status(last)

    with hub.client() as client, hub.worker([tells]):
        for last in ["done", 0, "", None]:
            instance = client.schedule_new_orchestration(tells, input=last)
            state = client.wait_for_orchestration_start(instance, fetch_payloads=True)
            equal(state.get_custom_status(), {"step": 1, "of": 2}, "with the first turn (R2.33)")
            equal(state.runtime_status, OrchestrationStatus.RUNNING, "status")
            client.raise_orchestration_event(instance, "on")
            until("the second status", lambda: client.get_orchestration_state(instance).get_custom_status() == "half way")
            client.raise_orchestration_event(instance, "on")
            state = finish(client, instance)
            equal(state.get_custom_status(), last, "after the end (R4.54)")
            equal(state.serialized_custom_status, None if last is None else json.dumps(last), "as text (R4.86)")
            equal(state.get_output(), None, "output")
        if not hub.reference:
            bare = client.get_orchestration_state(instance, fetch_payloads=False)
            equal(bare.serialized_custom_status, None, "nobody asked for it (R2.26)")


@program
def id_reuse(hub: Hub):
    """A second start with an id that is taken (R2.14 to R2.22)."""
    def waits(ctx, value):
        ctx.set_custom_status(f"custom {value}")
        got = yield ctx.wait_for_external_event("go")
        return [value, got]

    def replace(*statuses):
        return pb.OrchestrationIdReusePolicy(replaceableStatus=[status.value for status in statuses])

    running, completed, terminated = (OrchestrationStatus.RUNNING, OrchestrationStatus.COMPLETED,
                                      OrchestrationStatus.TERMINATED)
    with hub.client() as client, hub.worker([waits, echo]):
        def start(value, policy=None):
            return client.schedule_new_orchestration(waits, input=value, instance_id="taken", reuse_id_policy=policy)

        def taken(*policy):
            parts = [] if hub.reference else ["orchestration instance already exists", "taken"]  # R2.22
            refused(grpc.StatusCode.ALREADY_EXISTS, lambda: start("refused", *policy), *parts)

        start(1)
        client.wait_for_orchestration_start("taken")
        taken()  # R2.14
        taken(replace(completed))  # R2.16
        client.raise_orchestration_event("taken", "go", data="a")
        first = finish(client, "taken")
        equal(first.get_output(), [1, "a"], "the refused starts left it alone")

        if not hub.reference:
            taken(pb.OrchestrationIdReusePolicy())  # R2.17: a policy that replaces nothing
            taken(replace(terminated))  # R2.16
            start(2)  # R2.15: without a policy a terminal instance is replaced
        else:
            start(2, replace(completed))
        client.wait_for_orchestration_start("taken")
        second = client.get_orchestration_state("taken")
        equal(second.runtime_status, running, "status")
        equal((second.serialized_output, second.get_custom_status()), (None, "custom 2"), "what the first left (R2.20)")
        assert second.created_at > first.created_at, "created (R2.20)"

        if not hub.reference:
            # R2.18: a running instance is replaced, and what was under way for it dies with it.
            client.suspend_orchestration("taken")
            has_status(client, "taken", OrchestrationStatus.SUSPENDED)
            client.raise_orchestration_event("taken", "go", data="for the old one")
            start(3, replace(running, OrchestrationStatus.SUSPENDED, terminated))
            state = client.wait_for_orchestration_start("taken")
            equal(state.runtime_status, running, "status of the new one")
            run_echo(client)
            equal(client.get_orchestration_state("taken").runtime_status, running, "the old event must not reach it")
            client.raise_orchestration_event("taken", "go", data="b")
            equal(finish(client, "taken").get_output(), [3, "b"], "output of the new one")
            equal([json.loads(e.input) for e in only(check_history(hub, client, "taken"), h.EventRaisedEvent)], ["b"],
                  "history starts over (R2.20)")
            refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: start(4, replace(running)), "Invalid reusable statuses")  # R2.19
            refused(grpc.StatusCode.INVALID_ARGUMENT,
                    lambda: client.schedule_new_orchestration(echo, instance_id="x" * 101), "length")  # R2.3
            finish(client, client.schedule_new_orchestration(echo, instance_id="x" * 100))


@program
def tags_and_version(hub: Hub):
    """Tags and version reach the orchestrator, the state and the history (R2.8, R2.9, R3.33, R7.15)."""
    def tell(_, value):
        return value

    def reports(ctx, _):
        return (yield ctx.call_activity(tell, input=ctx.version, tags={"kind": "io", "empty": ""}))

    tags = {"team": "blue", "stage": "\u00fcber", "empty": ""}
    with hub.client() as client, hub.worker([reports], [tell]), hub.stub() as (stub, headers):
        def state_of(instance):
            request = pb.GetInstanceRequest(instanceId=instance, getInputsAndOutputs=True)
            return stub.GetInstance(request, metadata=headers).orchestrationState

        instance = client.schedule_new_orchestration(reports, tags=tags, version="1.4.2")
        equal(finish(client, instance).get_output(), "1.4.2", "as the orchestrator saw it")
        events = check_history(hub, client, instance)
        started = only(events, h.ExecutionStartedEvent)[0]
        equal((started.tags, started.version), (tags, "1.4.2"), "executionStarted (R4.7)")
        if not hub.reference:
            equal(only(events, h.TaskScheduledEvent)[0].tags, {"kind": "io", "empty": ""}, "taskScheduled")
            state = state_of(instance)
            equal((dict(state.tags), state.version.value), (tags, "1.4.2"), "state (R2.9, R2.30)")
            equal(state.executionId.value, started.orchestration_instance.execution_id, "execution id (R2.30)")

            instance = client.schedule_new_orchestration(reports)
            equal(finish(client, instance).get_output(), None, "no version")
            state = state_of(instance)
            equal((dict(state.tags), state.HasField("version")), ({}, False), "none were given (R2.8)")


# --- workers --------------------------------------------------------------------------------------------


def pair_of(ctx, numbers):
    """Squares the numbers at once and sums them."""
    squares = yield task.when_all([ctx.call_activity("square", input=n) for n in numbers])
    return sum(squares)


def meeting(ctx, people):
    return (yield task.when_all([ctx.call_activity("meet", input=people) for _ in range(people)]))


@worker_of("concurrent_workers")
def counting_worker(hub: Hub, role: str):
    """Counts what it runs in its log; meets the others in a folder that `role` names: `name@folder`."""
    name, folder = role.split("@")

    def square(_, number):
        report(f"ran {number}")
        return number * number

    def meet(_, people):
        """Returns once all are here. With one activity at a time per worker, that takes all workers at once."""
        open(os.path.join(folder, name), "w").close()
        until(f"{people} at the meeting", lambda: len(os.listdir(folder)) == people)
        return name

    return hub.worker([pair_of, meeting], [square, meet], activities_at_once=1)


@program
def concurrent_workers(hub: Hub):
    """Three worker processes share the work, three clients give it; limits are kept (R1.5, R3.1, R3.16, R3.17, R3.21)."""
    names, instances, width = ["north", "south", "west"], 10, 6
    with tempfile.TemporaryDirectory() as folder, \
            hub.worker_process("concurrent_workers", f"north@{folder}") as north, \
            hub.worker_process("concurrent_workers", f"south@{folder}") as south, \
            hub.worker_process("concurrent_workers", f"west@{folder}") as west, hub.client() as client:
        if not hub.reference:
            # All three hold an activity at the same moment, and no stream gets a second one while it does.
            met = finish(client, client.schedule_new_orchestration(meeting, input=len(names)))
            equal(sorted(met.get_output()), sorted(names), "who met (R3.1)")

        failures = []

        def customer(offset):
            try:
                with hub.client() as mine:
                    started = {mine.schedule_new_orchestration(pair_of, input=numbers): numbers
                               for numbers in ([offset + at * width + n for n in range(width)] for at in range(instances))}
                    for instance, numbers in started.items():
                        equal(finish(mine, instance).get_output(), sum(n * n for n in numbers), f"sum of {instance}")
                        check_history(hub, mine, instance)
            except BaseException as failure:
                failures.append(failure)

        customers = [threading.Thread(target=customer, args=(1000 * at,)) for at in range(3)]
        for each in customers:
            each.start()
        for each in customers:
            each.join()
        for failure in failures:
            raise failure

        # A worker says what it runs before it answers, so nothing is missing here.
        told = {worker.role.split("@")[0]: [line for line in worker.lines() if line.startswith("ran ")]
                for worker in (north, south, west)}
        ran = collections.Counter(line for lines in told.values() for line in lines)
        expected = {f"ran {1000 * at + n}" for at in range(3) for n in range(instances * width)}
        equal(set(ran), expected, "activities that ran")
        equal({line: times for line, times in ran.items() if times > 1}, {}, "activities that healthy workers ran twice")
        assert all(told.values()), f"a worker without work: { {name: len(lines) for name, lines in told.items()} } (R3.21)"


@worker_of("worker_killed")
def mortal_worker(hub: Hub, role: str):
    """The victim stops for ever in the activity `hold` and in the orchestrator `pauses`; others go through."""
    def tell(_, what):
        return [what, role]

    def hold(_, what):
        report("holds an activity")
        while role == "victim":
            time.sleep(PATIENCE)
        return [what, role]

    def holds(ctx, _):
        return (yield ctx.call_activity(hold, input="held"))

    def pauses(ctx, _):
        first = yield ctx.call_activity(tell, input="before")
        ctx.set_custom_status("ready")
        yield ctx.wait_for_external_event("go")
        if role == "victim":
            report("holds an orchestrator")
            time.sleep(10 * PATIENCE)
        second = yield ctx.call_activity(tell, input="after")
        return [first, second]

    return hub.worker([holds, pauses, echo], [hold, tell], orchestrations_at_once=1, activities_at_once=1)


@program
def worker_killed(hub: Hub):
    """SIGKILL a worker that holds an activity and an orchestrator: another one finishes both (R3.49, R3.20, L3)."""
    if hub.reference:
        return
    with hub.client() as client, hub.worker_process("worker_killed", "victim") as victim:
        turn = client.schedule_new_orchestration("pauses")
        until("the first half is done", lambda: client.get_orchestration_state(turn).serialized_custom_status == '"ready"')
        activity = client.schedule_new_orchestration("holds")
        victim.wait_for("holds an activity")
        client.raise_orchestration_event(turn, "go")
        victim.wait_for("holds an orchestrator")

        with mortal_worker(hub, "heir"):
            # The victim is full, so only the heir can do this; and what the victim holds stays with it (R3.1, R3.16).
            run_echo(client)
            for instance in (turn, activity):
                equal(client.get_orchestration_state(instance).runtime_status, OrchestrationStatus.RUNNING, "status")
            victim.kill()
            equal(finish(client, activity).get_output(), ["held", "heir"], "the activity")
            equal(finish(client, turn).get_output(), [["before", "victim"], ["after", "heir"]],
                  "the orchestrator: what the victim had finished is kept (S5)")
        for instance in (turn, activity):
            check_history(hub, client, instance)


# --- hubs -------------------------------------------------------------------------------------------------


@program
def queries(hub: Hub):
    """Many instances: queries with every filter, ids of ended ones, page by page (R2.73 to R2.83)."""
    def ends(ctx, how):
        ctx.set_custom_status(how)
        if how == "wait":
            yield ctx.wait_for_external_event("go")
        if how == "fail":
            raise ValueError("asked to")
        return how

    completed, failed, running = OrchestrationStatus.COMPLETED, OrchestrationStatus.FAILED, OrchestrationStatus.RUNNING
    with hub.client() as client, hub.worker([ends]):
        before = datetime.now(timezone.utc) - timedelta(seconds=5)
        for number in range(21):
            client.schedule_new_orchestration(ends, input="fail" if number % 7 == 0 else "ok", instance_id=f"q-{number:02}")
        client.schedule_new_orchestration(ends, input="wait", instance_id="Q-waits")
        for number in range(21):
            client.wait_for_orchestration_completion(f"q-{number:02}", timeout=PATIENCE)
        client.wait_for_orchestration_start("Q-waits", timeout=PATIENCE)

        def ids(**query):
            return sorted(state.instance_id for state in client.get_all_orchestration_states(OrchestrationQuery(**query)))

        mine = [f"q-{number:02}" for number in range(21)]
        bad = [f"q-{number:02}" for number in (0, 7, 14)]
        equal(ids(), sorted(["Q-waits", *mine]), "everything")
        equal(ids(max_instance_count=5), sorted(["Q-waits", *mine]), "in pages of 5 (R2.76)")
        equal(ids(runtime_status=[failed]), bad, "by status")
        equal(ids(runtime_status=[failed, running]), ["Q-waits", *bad], "by two statuses")
        equal(ids(created_time_from=before), sorted(["Q-waits", *mine]), "created since")
        equal(ids(created_time_to=before), [], "created until then")
        plain = client.get_all_orchestration_states(OrchestrationQuery(runtime_status=[failed]))
        equal([(state.serialized_input, state.serialized_custom_status, state.failure_details) for state in plain],
              [(None, None, None)] * 3, "nobody asked for payloads (R2.80)")
        whole = client.get_all_orchestration_states(
            OrchestrationQuery(runtime_status=[failed], fetch_inputs_and_outputs=True))
        for state in whole:
            equal(state, client.get_orchestration_state(state.instance_id), "whole")

        # Ended ones, in the order of their end.
        listed, token, pages = [], None, 0
        while True:
            page = client.list_instance_ids(page_size=8, continuation_token=token)
            listed += page.items
            pages, token = pages + 1, page.continuation_token
            if not token:
                break
        equal((sorted(listed), pages), (mine, 3), "ids of ended ones (R2.83)")
        equal(client.list_instance_ids(runtime_status=[failed]).items, [it for it in listed if it in bad], "failed ones")
        equal(client.list_instance_ids(completed_time_to=before).items, [], "ended before")
        client.raise_orchestration_event("Q-waits", "go")
        finish(client, "Q-waits")
        equal(client.list_instance_ids(completed_time_from=before).items, [*listed, "Q-waits"], "ended since, the last at the end")


@program
def purges(hub: Hub):
    """Purges by id, with children, by filter (R2.85 to R2.89)."""
    def leaf(ctx, value):
        return value

    def tree(ctx, value):
        yield ctx.call_sub_orchestrator(leaf, input=1, instance_id=f"{ctx.instance_id}-a")
        yield ctx.call_sub_orchestrator(leaf, input=2, instance_id=f"{ctx.instance_id}-b")
        return value

    def waits(ctx, _):
        yield ctx.wait_for_external_event("go")

    with hub.client() as client, hub.worker([leaf, tree, waits]):
        for instance in ("t1", "t2"):
            finish(client, client.schedule_new_orchestration(tree, input="x", instance_id=instance))
        client.schedule_new_orchestration(waits, instance_id="waits")
        client.wait_for_orchestration_start("waits", timeout=PATIENCE)
        gone = lambda *ids: [client.get_orchestration_state(each) for each in ids]

        equal(client.purge_orchestration("waits").deleted_instance_count, 0, "it has not ended (R2.85)")
        equal(client.purge_orchestration("nobody").deleted_instance_count, 0, "unknown")
        equal(client.purge_orchestration("t1", recursive=False).deleted_instance_count, 1, "alone (R2.89)")
        equal(gone("t1"), [None], "gone")
        assert client.get_orchestration_state("t1-a") is not None, "its child stays"
        equal(client.purge_orchestration("t2").deleted_instance_count, 3, "with its children (R2.89)")
        equal(gone("t2", "t2-a", "t2-b"), [None] * 3, "gone")
        equal(client.get_orchestration_history("t2"), [], "its history (R2.93)")

        result = client.purge_orchestrations_by(runtime_status=[OrchestrationStatus.FAILED])
        equal(result.deleted_instance_count, 0, "none failed")
        result = client.purge_orchestrations_by(
            created_time_from=datetime.now(timezone.utc) - timedelta(hours=1), created_time_to=datetime.now(timezone.utc) + timedelta(seconds=5))
        equal(result.deleted_instance_count, 2, "t1-a and t1-b (R2.86)")
        if not hub.reference:
            equal(result.is_complete, True, "there was time (R2.87)")
        left = client.get_all_orchestration_states()
        equal([state.instance_id for state in left], ["waits"], "what is left")


@program
def task_hubs(hub: Hub):
    """A hub that a call makes, empties and deletes (R2.97). This SDK has no method for it, only the stub."""
    if hub.reference:
        return
    name = f"{hub.name}-made"
    with hub.stub(name) as (stub, headers):
        stub.CreateTaskHub(pb.CreateTaskHubRequest(), metadata=headers)
        with hub.client(name) as client:
            client.schedule_new_orchestration(echo, instance_id="one")
            stub.CreateTaskHub(pb.CreateTaskHubRequest(recreateIfExists=True), metadata=headers)
            equal(client.get_orchestration_state("one"), None, "a new hub is empty")
            client.schedule_new_orchestration(echo, instance_id="one")
            stub.DeleteTaskHub(pb.DeleteTaskHubRequest(), metadata=headers)
            refused(grpc.StatusCode.NOT_FOUND, lambda: client.get_orchestration_state("one"), f"Task hub not found: {name}")


@program
def unknown_hub(hub: Hub):
    """A hub that nobody made: NOT_FOUND, for clients and for workers; hubs do not see each other (R1.9, R1.12)."""
    if hub.reference:
        return
    absent = f"{hub.name}-absent"
    with hub.client(absent) as client, hub.stub(absent) as (stub, headers):
        text = f"Task hub not found: {absent}"
        refused(grpc.StatusCode.NOT_FOUND, lambda: client.schedule_new_orchestration(echo), text)
        refused(grpc.StatusCode.NOT_FOUND, lambda: client.get_orchestration_state("x"), text)
        refused(grpc.StatusCode.NOT_FOUND, lambda: client.wait_for_orchestration_completion("x", timeout=PATIENCE), text)
        refused(grpc.StatusCode.NOT_FOUND, lambda: client.raise_orchestration_event("x", "e"), text)
        refused(grpc.StatusCode.NOT_FOUND,
                lambda: next(stub.GetWorkItems(pb.GetWorkItemsRequest(), metadata=headers, timeout=PATIENCE)), text)
    # The hub is still absent, and the right one works.
    with hub.client(absent) as client, hub.client() as mine, hub.worker([echo]):
        refused(grpc.StatusCode.NOT_FOUND, lambda: client.get_orchestration_state("x"), text)
        run_echo(mine)


@program
def base_sdk(hub: Hub):
    """The base client and worker, without any header: they meet in the hub `default` (R1.8)."""
    def greet(_, name):
        return f"hello {name}"

    def greets(ctx, name):
        greeting = yield ctx.call_activity(greet, input=name)
        other = yield ctx.wait_for_external_event("other")
        return [greeting, other]

    with TaskHubGrpcWorker(host_address=hub.endpoint) as worker, TaskHubGrpcClient(host_address=hub.endpoint) as client:
        register(worker, [greets], [greet])
        worker.start()
        instance = client.schedule_new_orchestration(greets, input="world")
        client.raise_orchestration_event(instance, "other", data="you")
        state = finish(client, instance)
        equal(state.get_output(), ["hello world", "you"], "output")
        check_history(hub, client, instance)
        with hub.client("default") as named, hub.client() as elsewhere:
            equal(named.get_orchestration_state(instance), state, "seen through the header `default`")
            if not hub.reference:
                equal(elsewhere.get_orchestration_state(instance), None, "seen from another hub")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=sorted(PROGRAMS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name all programs and stop")
    parser.add_argument("--endpoint", help="HOST:PORT of the gRPC listener")
    parser.add_argument("--task-hub", default="default")
    parser.add_argument("--reference", action="store_true", help="the server is the SDK's in-memory one")
    parser.add_argument("--worker", metavar="ROLE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(PROGRAMS))
        return
    if not arguments.name or not arguments.endpoint:
        parser.error("NAME and --endpoint are needed")

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    hub = Hub(arguments.endpoint, arguments.task_hub, arguments.reference)
    if arguments.worker:
        # A child of a program: works until the parent kills it, or is gone itself.
        with WORKERS[arguments.name](hub, arguments.worker):
            sys.stdin.read()
        os._exit(0)
    # A program that hangs says where, and fails.
    faulthandler.dump_traceback_later(150, exit=True)
    PROGRAMS[arguments.name](hub)
    faulthandler.cancel_dump_traceback_later()
    print(f"ok {arguments.name}", flush=True)


if __name__ == "__main__":
    main()
