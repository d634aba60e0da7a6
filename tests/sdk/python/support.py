"""What the SDK programs share: a hub to talk to, waiting, worker processes, and history checks.

A `Hub` is one task hub of the server under test. It makes clients and workers of the real SDK
(`durabletask.azuremanaged`): without TLS and credential, or, when the variable DURAHUB_TEST_TOKEN holds a
token, over TLS with a credential that hands it out. Nothing here stands between a program and the
SDK: a program calls the SDK itself, this module only saves it the set-up.

`hub.reference` is true when the server is the SDK's own in-memory one, which is useful to tell a
wrong program from a wrong server. What only Durahub promises is then left unchecked.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone

import grpc
from azure.core.credentials import AccessToken

import durabletask.internal.orchestrator_service_pb2 as pb
import durabletask.internal.orchestrator_service_pb2_grpc as stubs
from durabletask import history as h
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.client import OrchestrationStatus
from durabletask.worker import ConcurrencyOptions

# Enough for a debug build on a busy machine; nothing below waits this long when all is well.
PATIENCE = 60.0

LOG = logging.getLogger("durabletask")

TOKEN = os.environ.get("DURAHUB_TEST_TOKEN")


class Credential:
    """Hands out one token, as the credentials of Azure do."""

    def get_token(self, *scopes, **_):
        return AccessToken(TOKEN, int(time.time()) + 3600)


CREDENTIAL = Credential() if TOKEN else None


class Hub:
    """One task hub of the server under test."""

    def __init__(self, endpoint: str, name: str, reference: bool = False):
        self.endpoint = endpoint
        self.name = name
        self.reference = reference

    def client(self, name: str | None = None) -> DurableTaskSchedulerClient:
        return DurableTaskSchedulerClient(
            host_address=self.endpoint, taskhub=name or self.name, token_credential=CREDENTIAL,
            secure_channel=bool(TOKEN), logger=LOG)

    @contextlib.contextmanager
    def worker(self, orchestrators=(), activities=(), orchestrations_at_once=None, activities_at_once=None, entities=(), configure=None):
        """A running worker; stopped at the end of the block."""
        worker = DurableTaskSchedulerWorker(
            host_address=self.endpoint, taskhub=self.name, token_credential=CREDENTIAL,
            secure_channel=bool(TOKEN), logger=LOG,
            concurrency_options=ConcurrencyOptions(
                maximum_concurrent_orchestration_work_items=orchestrations_at_once,
                maximum_concurrent_activity_work_items=activities_at_once,
                maximum_thread_pool_workers=16))
        register(worker, orchestrators, activities)
        for entity in entities:
            worker.add_entity(entity)
        if configure:
            configure(worker)
        with worker:
            worker.start()
            yield worker

    @contextlib.contextmanager
    def stub(self, name: str | None = None):
        """The bare service, for what the client does not show, and the headers to send with a call."""
        headers = [("taskhub", name or self.name)]
        if TOKEN:
            headers.append(("authorization", f"Bearer {TOKEN}"))
            opened = grpc.secure_channel(self.endpoint, grpc.ssl_channel_credentials())
        else:
            opened = grpc.insecure_channel(self.endpoint)
        with opened as channel:
            yield stubs.TaskHubSidecarServiceStub(channel), headers

    @contextlib.contextmanager
    def worker_process(self, program: str, role: str):
        """A worker in a process of its own, as `programs.WORKERS[program]` builds it. Ends with the block."""
        process = WorkerProcess(self, program, role)
        try:
            yield process
        finally:
            process.kill()


def register(worker, orchestrators, activities):
    for orchestrator in orchestrators:
        worker.add_orchestrator(orchestrator)
    for activity in activities:
        worker.add_activity(activity)


class WorkerProcess:
    """A child that runs a worker and tells on its standard output what it is doing (see `report`)."""

    def __init__(self, hub: Hub, program: str, role: str):
        self.role = role
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs.py"), program,
             "--endpoint", hub.endpoint, "--task-hub", hub.name, "--worker", role],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line.strip())
                self._news.notify_all()

    def lines(self) -> list[str]:
        with self._news:
            return list(self._lines)

    def wait_for(self, line: str):
        with self._news:
            told = self._news.wait_for(lambda: line in self._lines, timeout=PATIENCE)
            assert told, f"worker {self.role} never said {line!r}; it said {self._lines}"

    def kill(self):
        """SIGKILL: no goodbye to the server."""
        self._process.kill()
        self._process.wait()


def report(line: str):
    """Tells the parent of a worker process what happened; one atomic write per line."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def until(what: str, probe, patience: float = PATIENCE):
    """Polls `probe` until it gives something true. Only for what the SDK has no waiting call for."""
    deadline = time.monotonic() + patience
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {patience:.0f} s: {what}"
        time.sleep(0.02)


def has_status(client, instance: str, status: OrchestrationStatus):
    """Waits until the instance shows `status`."""
    until(f"{instance} is {status}", lambda: client.get_orchestration_state(instance).runtime_status == status)


def finish(client, instance: str, status: OrchestrationStatus = OrchestrationStatus.COMPLETED):
    """Waits for the end of an instance and checks the status that it ended with."""
    state = client.wait_for_orchestration_completion(instance, timeout=PATIENCE)
    assert state is not None, f"{instance} does not exist"
    assert state.runtime_status == status, \
        f"{instance} ended {state.runtime_status}, expected {status}: output {state.serialized_output}, {state.failure_details}"
    if status != OrchestrationStatus.FAILED:
        assert state.failure_details is None, f"{instance} is {status} and has failure details (R2.27)"
    return state


def equal(actual, expected, what: str):
    """Equal in value and in type: 0 is not False, 1 is not True."""
    assert type(actual) is type(expected) and actual == expected, f"{what}: got {actual!r}, expected {expected!r}"


def refused(code: grpc.StatusCode, call, *parts: str):
    """The call must be refused with this code and a message that holds all parts."""
    try:
        answer = call()
    except grpc.RpcError as error:
        assert error.code() == code, f"refused with {error.code()} instead of {code}: {error.details()}"
        for part in parts:
            assert part in error.details(), f"the message {error.details()!r} does not hold {part!r}"
    else:
        raise AssertionError(f"expected {code}, but the call was answered: {answer!r}")


def utc(moment: datetime) -> datetime:
    """The SDK's states carry naive UTC times."""
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def shape(events) -> list[str]:
    return [type(event).__name__.removesuffix("Event") for event in events]


def only(events, kind):
    return [event for event in events if isinstance(event, kind)]


def check_history(hub: Hub, client, instance: str):
    """Reads the history of a terminal instance, checks the rules that hold for every one, and returns it.

    R4.1 begin and end, R4.2 no orchestratorCompleted, R4.3 event ids, R4.6 timestamps, R3.27 the clock
    of turns, R4.46 timers not early, and invariant S5: one terminal event per scheduled task, no
    result without a task.
    """
    events = client.get_orchestration_history(instance)
    if hub.reference:
        return [event for event in events if not isinstance(event, h.OrchestratorCompletedEvent)]

    names = shape(events)
    assert names[:2] == ["OrchestratorStarted", "ExecutionStarted"], f"{instance} begins {names[:2]} (R4.1)"
    assert names[-1] == "ExecutionCompleted", f"{instance} ends {names[-1]} (R4.1)"
    assert names.count("ExecutionStarted") == 1 and names.count("ExecutionCompleted") == 1, f"{names} (R4.1)"
    assert "OrchestratorCompleted" not in names, f"{names} (R4.2)"

    started = events[1]
    assert started.event_id == 0, f"executionStarted has event id {started.event_id} (R4.3)"
    assert started.orchestration_instance.instance_id == instance, f"{started.orchestration_instance} (R4.7)"
    assert started.orchestration_instance.execution_id, "no execution id (R2.12)"

    clock = None
    open_tasks, timers = set(), {}
    for event in events:
        assert event.timestamp.year > 2000, f"no timestamp: {event} (R4.6)"
        match event:
            case h.OrchestratorStartedEvent():
                assert clock is None or event.timestamp > clock, f"turns at {clock} and {event.timestamp} (R3.27)"
                clock = event.timestamp
                assert event.event_id == -1, f"{event} (R4.3)"
            case h.TaskScheduledEvent():
                assert event.event_id >= 0 and event.event_id not in open_tasks, f"{event} (R4.3)"
                open_tasks.add(event.event_id)
            case h.TaskCompletedEvent() | h.TaskFailedEvent():
                assert event.event_id == -1, f"{event} (R4.3)"
                assert event.task_scheduled_id in open_tasks, f"a second result, or one without a task: {event} (S5)"
                open_tasks.remove(event.task_scheduled_id)
            case h.TimerCreatedEvent():
                timers[event.event_id] = event.fire_at
            case h.TimerFiredEvent():
                assert event.event_id == -1, f"{event} (R4.3)"
                due = timers.pop(event.timer_id, None)
                assert due is not None, f"a timer fired twice or was never set: {event} (S6)"
                assert event.fire_at == due and clock >= due, f"due {due}, {event}, turn at {clock} (R4.46)"
            case h.EventRaisedEvent() | h.ExecutionSuspendedEvent() | h.ExecutionResumedEvent() \
                    | h.ExecutionTerminatedEvent():
                assert event.event_id == -1, f"{event} (R4.3)"
    if events[-1].orchestration_status == pb.ORCHESTRATION_STATUS_COMPLETED:
        assert not open_tasks, f"{instance} completed, but tasks {open_tasks} have no result (S5)"
    return events
