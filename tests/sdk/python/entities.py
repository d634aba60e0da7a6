"""Programs about entities: operations, failures, locks, delayed signals, what entities start, schedules, exports.

Part of `programs.py`, which says how they are run.
"""

import gzip
import json
import time
from datetime import datetime, timedelta, timezone

import grpc

import durabletask.internal.orchestrator_service_pb2 as pb
from durabletask import task
from durabletask.client import EntityQuery, OrchestrationStatus
from durabletask.entities import DurableEntity, EntityContext, EntityInstanceId
from durabletask.extensions.history_export import (ExportDestination, ExportFormat, ExportFormatKind,
                                                   ExportHistoryClient, ExportJobCreationOptions, ExportJobQuery,
                                                   ExportJobStatus, ExportMode)
from durabletask.scheduled import (ScheduleCreationOptions, ScheduledTaskClient, ScheduleQuery, ScheduleStatus,
                                   ScheduleUpdateOptions)

from support import Hub, equal, finish, refused, until

ENTITIES = {}


def program(function):
    ENTITIES[function.__name__] = function
    return function


class Account(DurableEntity):
    """A class-based entity."""

    def add(self, amount: int):
        self.set_state(self.get_state(int, 0) + amount)
        return self.get_state(int, 0)

    def get(self):
        return self.get_state(int, 0)

    def spoil(self, amount: int):
        self.set_state(self.get_state(int, 0) + amount)
        self.signal_entity(EntityInstanceId("account", "victim"), "add", 1000)
        raise ValueError("spoiled on purpose")


def counter(ctx: EntityContext, value):
    """A function-based entity."""
    match ctx.operation:
        case "add":
            ctx.set_state(ctx.get_state(int, 0) + value)
        case "get":
            return ctx.get_state(int, 0)
        case "log":
            ctx.set_state(ctx.get_state(list, []) + [value])
        case "reset":
            ctx.set_state(None)
        case "start":
            return ctx.schedule_new_orchestration("child", value, instance_id="started-by-entity")
        case "pass_on":
            ctx.signal_entity(EntityInstanceId("counter", "other"), "add", value)


def entity(name, key):
    return EntityInstanceId(name, key)


def state(client, id, kind=None):
    found = client.get_entity(id, include_state=True)
    return found and found.get_typed_state(kind)


def holder(hub, id):
    """Who has locked an entity. The SDK's own accessor expects the id of an entity there."""
    with hub.stub() as (stub, headers):
        return stub.GetEntity(pb.GetEntityRequest(instanceId=str(id)), metadata=headers).entity.lockedBy.value


@program
def entity_operations(hub: Hub):
    """Signals and calls in order, both kinds of entities, deletion and a new life (R5.7, R5.10 to R5.19)."""
    def mixed(ctx, count):
        id = entity("counter", "mixed")
        for _ in range(count):
            ctx.signal_entity(id, "add", 2)
        return (yield ctx.call_entity(id, "get"))

    def accounts(ctx, key):
        yield ctx.call_entity(entity("account", key), "add", 5)
        return (yield ctx.call_entity(entity("account", key), "get"))

    def unknown(ctx, _):
        yield ctx.call_entity(entity("nobody", "1"), "get")

    client = hub.client()
    with hub.worker([mixed, accounts, unknown], entities=[counter, Account]):
        equal(client.get_entity(entity("counter", "none")), None, "an unknown entity (R2.100)")
        for key, count in [("a", 10), ("b", 250)]:
            for number in range(count):
                client.signal_entity(entity("counter", key), "log", number)
            last = until("all ran", lambda: (it := state(client, entity("counter", key))) and len(it) == count and it)
            equal(last, list(range(count)), "signals of one client, in order (R5.12)")
        equal(finish(client, client.schedule_new_orchestration(mixed, input=20)).get_output(), 40, "a call sees the signals before it (R5.12)")
        equal(finish(client, client.schedule_new_orchestration(accounts, input="Key")).get_output(), 5, "keys keep their case (R5.2)")
        equal(client.get_entity(entity("account", "key")), None, "another key")
        failed = finish(client, client.schedule_new_orchestration(unknown), OrchestrationStatus.FAILED)
        assert "nobody" in failed.failure_details.message, f"an entity nobody knows (R5.22): {failed.failure_details}"

        client.signal_entity(entity("counter", "mixed"), "reset")
        until("it is gone", lambda: client.get_entity(entity("counter", "mixed")) is None)
        equal(finish(client, client.schedule_new_orchestration(mixed, input=1)).get_output(), 2, "a new life (R5.10)")


@program
def entity_failures(hub: Hub):
    """A failed operation changes nothing and sends nothing; others of its batch count (R5.18 to R5.20, R3.74)."""
    def spoils(ctx, _):
        id = entity("account", "1")
        tasks = [ctx.call_entity(id, "add", 1), ctx.call_entity(id, "spoil", 100), ctx.call_entity(id, "add", 1)]
        said = []
        for each in tasks:
            try:
                said.append((yield each))
            except Exception as error:
                said.append(str(error))
        return said

    client = hub.client()
    with hub.worker([spoils], entities=[Account]):
        said = finish(client, client.schedule_new_orchestration(spoils)).get_output()
        equal([said[0], said[2]], [1, 2], "the others ran, on the state before")
        assert "spoiled on purpose" in said[1], said
        client.signal_entity(entity("account", "1"), "spoil", 5)
        client.signal_entity(entity("account", "1"), "add", 10)
        until("the signal behind it ran", lambda: state(client, entity("account", "1"), int) == 12)
        equal(client.get_entity(entity("account", "victim")), None, "what a failed operation sent is dropped")


@program
def entity_locks(hub: Hub):
    """Transfers between locked accounts, holders that end in every way, who holds a lock (R5.27 to R5.39)."""
    a, b = entity("account", "a"), entity("account", "b")

    def transfer(ctx, amount):
        with (yield ctx.lock_entities([b, a])):
            before = yield ctx.call_entity(a, "get")
            yield ctx.create_timer(timedelta(milliseconds=5))
            yield ctx.call_entity(a, "add", -amount)
            yield ctx.call_entity(b, "add", amount)
            return [before, (yield ctx.call_entity(a, "get"))]

    def breaks(ctx, _):
        with (yield ctx.lock_entities([a, b])):
            yield ctx.call_entity(a, "get")
            raise ValueError("inside")

    def holds(ctx, _):
        with (yield ctx.lock_entities([a, b])):
            yield ctx.wait_for_external_event("go")

    client = hub.client()
    with hub.worker([transfer, breaks, holds], entities=[Account]):
        client.signal_entity(a, "add", 100)
        until("paid in", lambda: state(client, a, int) == 100)
        transfers = [client.schedule_new_orchestration(transfer, input=n) for n in range(1, 9)]
        for number, instance in enumerate(transfers, 1):
            before, after = finish(client, instance).get_output()
            equal(after, before - number, "nobody else in between (S10)")
        equal((state(client, a, int), state(client, b, int)), (64, 36), "all transfers")
        finish(client, client.schedule_new_orchestration(breaks), OrchestrationStatus.FAILED)

        instance = client.schedule_new_orchestration(holds)
        until("it holds both (R5.37)", lambda: holder(hub, a) == instance and holder(hub, b) == instance)
        client.signal_entity(a, "add", 1)
        waiting = client.schedule_new_orchestration(transfer, input=1)
        time.sleep(0.3)
        equal(state(client, a, int), 64, "a signal waits for the holder (R5.30)")
        client.terminate_orchestration(instance)
        finish(client, instance, OrchestrationStatus.TERMINATED)
        equal(finish(client, waiting).get_output(), [65, 64], "the lock went with its holder (R5.31)")
        until("no lock is left", lambda: not holder(hub, a) and not holder(hub, b))


@program
def entity_delays(hub: Hub):
    """Signals for later, by a client, an orchestration and an entity: not early, and soon (R5.16, R7.3)."""
    def clock(ctx: EntityContext, value):
        if ctx.operation == "tick":
            ctx.set_state(ctx.get_state(list, []) + [[value, time.time()]])
        else:
            at = datetime.fromtimestamp(value, timezone.utc)
            ctx.signal_entity(EntityInstanceId("clock", "1"), "tick", value, at)

    def later(ctx, at):
        ctx.signal_entity(entity("clock", "1"), "tick", at, datetime.fromtimestamp(at, timezone.utc))
        return at

    client = hub.client()
    with hub.worker([later], entities=[clock]):
        now = time.time()
        due = [now + 1.5, now + 1.0, now + 2.0, now + 2.5]
        client.signal_entity(entity("clock", "1"), "tick", due[0], datetime.fromtimestamp(due[0], timezone.utc))
        client.signal_entity(entity("clock", "1"), "tick", due[1], datetime.fromtimestamp(due[1], timezone.utc))
        client.signal_entity(entity("clock", "other"), "later", due[2])
        finish(client, client.schedule_new_orchestration(later, input=due[3]))
        ticks = until("all came", lambda: (it := state(client, entity("clock", "1"))) and len(it) == 4 and it)
        equal([tick[0] for tick in ticks], sorted(due), "in the order of their times")
        for wanted, came in ticks:
            assert came - wanted > -0.005, f"wanted {wanted}, came {came - wanted:+.3f} s"
        # A signal for now takes the same way on the same machine; only what comes on top of that is the delay's.
        for sent in range(1, 4):
            client.signal_entity(entity("clock", "now"), "tick", time.time())
            until("it came", lambda: (it := state(client, entity("clock", "now"))) and len(it) == sent)
        usual = max(came - wanted for wanted, came in state(client, entity("clock", "now")))
        late = min(came - wanted for wanted, came in ticks)
        assert late < 0.1 + usual, f"late by {late} s, and a signal for now takes {usual} s (R7.3)"


@program
def entity_actions(hub: Hub):
    """What entities start and signal (R5.23 to R5.25)."""
    def child(ctx, value):
        yield ctx.wait_for_external_event("go")
        return value

    def caller(ctx, value):
        return (yield ctx.call_entity(entity("counter", "1"), "start", value))

    client = hub.client()
    with hub.worker([child, caller], entities=[counter]):
        finish(client, client.schedule_new_orchestration(caller, input="first"))
        until("it runs", lambda: client.get_orchestration_state("started-by-entity"))
        finish(client, client.schedule_new_orchestration(caller, input="second"))
        client.raise_orchestration_event("started-by-entity", "go")
        equal(finish(client, "started-by-entity").get_output(), "first", "one that runs is left alone (R5.25)")
        finish(client, client.schedule_new_orchestration(caller, input="third"))
        client.raise_orchestration_event("started-by-entity", "go")
        until("started anew", lambda: (it := client.get_orchestration_state("started-by-entity")).runtime_status
              == OrchestrationStatus.COMPLETED and it.get_output() == "third")
        client.signal_entity(entity("counter", "1"), "pass_on", 7)
        until("passed on", lambda: state(client, entity("counter", "other"), int) == 7)


@program
def entity_queries(hub: Hub):
    """Pages, prefixes, times, cleaning, refusals (R2.99 to R2.104, R5.1 to R5.5)."""
    client = hub.client()
    with hub.worker(entities=[counter, Account]):
        for number in range(21):
            client.signal_entity(entity("counter", f"q{number:02}"), "add", number)
        until("all ran", lambda: len(client.get_all_entities()) == 21)
        middle = datetime.now(timezone.utc)
        client.signal_entity(entity("account", "q01"), "add", 1)
        until("it ran", lambda: client.get_entity(entity("account", "q01")))
        client.signal_entity(entity("counter", "q00"), "reset")
        until("it is gone", lambda: client.get_entity(entity("counter", "q00")) is None)

        found = client.get_all_entities(EntityQuery(include_state=True, page_size=5))
        ids = [str(each.id) for each in found]
        equal(ids, ["@account@q01"] + [f"@counter@q{number:02}" for number in range(1, 21)], "in the order of ids")
        equal([each.get_typed_state(int) for each in found[1:]], list(range(1, 21)), "with states")
        of = lambda prefix: len(client.get_all_entities(EntityQuery(instance_id_starts_with=prefix)))
        equal((of("@counter@q1"), of("@counter"), of("@Counter@q1"), of("@c")), (10, 20, 0, 20), "by prefix")
        recent = client.get_all_entities(EntityQuery(last_modified_from=middle))
        equal([str(each.id) for each in recent], ["@account@q01"], "by time (R5.8)")
        cleaned = client.clean_entity_storage()
        equal((cleaned.empty_entities_removed, cleaned.orphaned_locks_released), (0, 0), "R2.103")

        refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.signal_entity(entity("counter", "k" * 120), "add", 1), "length")
        equal(client.get_orchestration_state("@counter@q01"), None, "R2.104")
        with hub.stub() as (stub, headers):
            signal = pb.SignalEntityRequest(instanceId="@COUNTER@once", name="add", requestId="11111111-1111-1111-1111-111111111111")
            signal.input.value = "5"
            for _ in range(3):
                stub.SignalEntity(signal, metadata=headers)
            signal.requestId = "22222222-2222-2222-2222-222222222222"
            stub.SignalEntity(signal, metadata=headers)
            until("both ran", lambda: state(client, entity("counter", "once"), int) == 10)
            refused(grpc.StatusCode.INVALID_ARGUMENT,
                    lambda: stub.SignalEntity(pb.SignalEntityRequest(instanceId="plain", name="add"), metadata=headers), "@name@key")
            purge = pb.PurgeInstancesRequest(instanceId="@counter@once")
            equal(stub.PurgeInstances(purge, metadata=headers).deletedInstanceCount, 1, "R2.90")
            equal(client.get_entity(entity("counter", "once")), None, "its state is gone")


@program
def schedules(hub: Hub):
    """The SDK's scheduled tasks: create, pause, resume, update, delete, start and end times (R7.1 to R7.5)."""
    def job(ctx, value):
        return value

    client = hub.client()
    runs = lambda: [each for each in client.get_all_orchestration_states() if each.name == "job"]
    with hub.worker([job], configure=lambda worker: worker.configure_scheduled_tasks()):
        tasks = ScheduledTaskClient(client)
        start = datetime.now(timezone.utc) + timedelta(seconds=1)
        schedule = tasks.create_schedule(ScheduleCreationOptions(
            schedule_id="every-second", orchestration_name="job", orchestration_input="one",
            interval=timedelta(seconds=1), start_at=start))
        equal(len(runs()), 0, "not before its start")
        until("it ran three times", lambda: len(runs()) >= 3)
        first = min(each.created_at for each in runs()).replace(tzinfo=timezone.utc)
        assert timedelta(0) <= first - start < timedelta(seconds=1), f"start {start}, first run {first}"

        schedule.pause()
        equal(schedule.describe().status, ScheduleStatus.PAUSED, "status")
        paused = len(runs())
        time.sleep(2.5)
        equal(len(runs()), paused, "none while paused")
        schedule.update(ScheduleUpdateOptions(orchestration_input="two"))
        schedule.resume()
        equal(schedule.describe().status, ScheduleStatus.ACTIVE, "status")
        until("it goes on with the new input", lambda: any(
            (it := client.get_orchestration_state(each.instance_id, fetch_payloads=True)).runtime_status
            == OrchestrationStatus.COMPLETED and it.get_output() == "two" for each in runs()))

        tasks.create_schedule(ScheduleCreationOptions(
            schedule_id="ends", orchestration_name="job", interval=timedelta(seconds=1),
            end_at=datetime.now(timezone.utc) + timedelta(seconds=2)))
        equal(sorted(each.schedule_id for each in tasks.list_schedules()), ["ends", "every-second"], "R7.2")
        equal([each.schedule_id for each in tasks.list_schedules(ScheduleQuery(schedule_id_prefix="e" "v"))], ["every-second"], "R7.2")
        schedule.delete()
        equal(tasks.get_schedule("every-second"), None, "deleted")
        until("its end has passed", lambda: tasks.get_schedule("ends") is None)
        ended = [each for each in runs() if each.instance_id.startswith("ends-")]
        assert 1 <= len(ended) <= 3, f"every second, until its end: {ended}"
        last = len(runs())
        time.sleep(2.5)
        equal(len(runs()), last, "nothing runs any more")


class Shelf:
    """Where exports go: the SDK asks for nothing but `write`."""

    def __init__(self):
        self.books = {}

    def write(self, *, instance_id, container, blob_name, payload, content_type, content_encoding, metadata=None):
        self.books[instance_id] = (container, blob_name, gzip.decompress(payload) if content_encoding == "gzip" else payload)


@program
def history_export(hub: Hub):
    """The SDK's history export: one run over all that ended, page by page, and one that follows (R7.2, R7.6 to R7.8)."""
    def job(ctx, value):
        if value == "fail":
            raise ValueError("on purpose")
        return value

    def waits(ctx, _):
        yield ctx.wait_for_external_event("go")

    client, shelf = hub.client(), Shelf()
    exports = ExportHistoryClient(client, shelf)
    with hub.worker([job, waits], configure=exports.register_worker):
        began = datetime.now(timezone.utc) - timedelta(seconds=1)
        for number in range(12):
            client.schedule_new_orchestration(job, input=f"value {number}", instance_id=f"done-{number:02}")
        client.schedule_new_orchestration(job, input="fail", instance_id="failed")
        client.schedule_new_orchestration(waits, instance_id="runs")
        done = [f"done-{number:02}" for number in range(12)]
        for instance in done:
            finish(client, instance)
        finish(client, "failed", OrchestrationStatus.FAILED)

        options = dict(completed_time_from=began, max_instances_per_batch=5, max_parallel_exports=3)
        first = exports.create_job(ExportJobCreationOptions(
            mode=ExportMode.BATCH, completed_time_to=datetime.now(timezone.utc),
            destination=ExportDestination(container="shelf", prefix="once"), **options), job_id="once")
        ended = exports.get_job_client(first.job_id).wait(timeout=60, poll_interval=0.1)
        equal(ended.status, ExportJobStatus.COMPLETED, f"status: {ended}")
        equal((ended.exported_instances, ended.failed_instances), (13, 0), "all that ended, and nothing that runs")
        equal(sorted(shelf.books), done + ["failed"], "each once")
        container, name, book = shelf.books["done-07"]
        equal((container, name.startswith("once/")), ("shelf", True), "where it was sent")
        lines = [json.loads(line) for line in book.splitlines()]
        equal(lines[0]["instance_id"], "done-07", "the first line names it")
        equal(len(lines) - 1, len(client.get_orchestration_history("done-07")), "and its whole history follows")
        assert "value 7" in json.dumps(lines), lines

        shelf.books.clear()
        follows = exports.create_job(ExportJobCreationOptions(
            mode=ExportMode.CONTINUOUS, format=ExportFormat(kind=ExportFormatKind.JSON),
            destination=ExportDestination(container="shelf"), **options), job_id="follows")
        until("what had ended is exported", lambda: set(done) <= set(shelf.books))
        equal(json.loads(shelf.books["done-01"][2])["instance_id"], "done-01", "as JSON")
        equal([each.job_id for each in exports.list_jobs(ExportJobQuery(status=[ExportJobStatus.ACTIVE]))], ["follows"], "R7.2")
        exports.delete_job("follows")
        until("it is deleted", lambda: exports.get_job("follows") is None)
        equal(client.get_orchestration_state(follows.orchestrator_instance_id), None, "and so is what drove it")
