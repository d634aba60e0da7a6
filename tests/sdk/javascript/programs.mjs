// Durable Task programs in JavaScript, run unmodified against Durahub.
//
//     node programs.mjs NAME --endpoint HOST:PORT --task-hub HUB
//
// from a folder with the SDK in its node_modules runs one program and prints `ok NAME`, or exits
// non-zero and says what was wrong. `--list` names them all. Each program wants a task hub of its own,
// since its workers take everything that the hub holds (R3.7). tests/sdk.rs installs the SDK, starts the
// server and runs them all.
//
// Not here, because this SDK has no way to say it: an id reuse policy, reasons for suspend and resume,
// limits on what a worker takes at once. The rules cited are those of proto/CONTRACT.md.

import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";

import { entities } from "./entities.mjs";
import { families } from "./families.mjs";
import {
  Hub, PATIENCE, Status, checkHistory, codes, equal, finish, hasStatus, only, output, pb, refused, sdk, shape, until,
} from "./support.mjs";

const { RetryPolicy, TaskFailedError, whenAll, whenAny } = sdk;

// An orchestrator that gives back what it was given. Also a clock: once one that was started now has
// finished, the server has had its time to do what it should not have done.
const echo = async function echo(_, value) {
  return value;
};

async function runEcho(client) {
  equal(output(await finish(client, await client.scheduleNewOrchestration(echo, "tick"))), "tick", "echo");
}

const range = (count, from = 0) => Array.from({ length: count }, (_, at) => from + at);
const programs = { ...families, ...entities };
// program -> what the worker of that program is made of, in a process of its own
const workers = {};

// --- activities ------------------------------------------------------------------------------------

/** Three activities in a row: output, state and the exact history (R4.1 to R4.6, R2.24, R2.25, R2.93). */
programs.chain = async (hub) => {
  const increase = (_, number) => number + 1;
  const double = async (_, number) => number * 2;
  const describe = (_, number) => `the number ${number} — äöü 🚀`;
  const chained = async function* chained(ctx, number) {
    number = yield ctx.callActivity(increase, number);
    number = yield ctx.callActivity(double, number);
    return yield ctx.callActivity(describe, number);
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [chained], activities: [increase, double, describe] }, async () => {
    equal(await client.getOrchestrationState("nobody"), undefined, "an unknown id (R2.24)");
    if (!hub.reference) equal(await client.getOrchestrationHistory("nobody"), [], "history of an unknown id (R2.93)");

    equal(await client.scheduleNewOrchestration(chained, 20, "chain-1"), "chain-1", "the id in the answer (R2.1)");
    const state = await finish(client, "chain-1");
    equal(output(state), "the number 42 — äöü 🚀", "output");
    equal([state.serializedInput, state.name, state.serializedCustomStatus], ["20", "chained", undefined], "state");
    assert(state.createdAt <= state.lastUpdatedAt && state.createdAt.getTime() > 0, "timestamps (R2.29)");
    const bare = await client.getOrchestrationState("chain-1", false);
    equal([bare.serializedInput, bare.serializedOutput], [undefined, undefined], "payloads nobody asked for (R2.26)");

    const events = await checkHistory(hub, client, "chain-1");
    const turn = ["OrchestratorStarted", "TaskCompleted"];
    equal(shape(events), ["OrchestratorStarted", "ExecutionStarted", "TaskScheduled", ...turn, "TaskScheduled", ...turn,
      "TaskScheduled", ...turn, "ExecutionCompleted"], "history (R4.2)");
    equal(only(events, "TaskScheduled").map((e) => [e.name, e.input]),
      [["increase", "20"], ["double", "21"], ["describe", "42"]], "scheduled tasks");
    equal(only(events, "TaskCompleted").map((e) => e.result), ["21", "42", state.serializedOutput], "results");
  });
};

/** A hundred activities at once, joined: every result arrives, once, in the right place. */
programs.fan_out = async (hub) => {
  const width = 100;
  const square = (_, number) => number * number;
  const spread = async function* spread(ctx, count) {
    return yield whenAll(range(count).map((number) => ctx.callActivity(square, number)));
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [spread], activities: [square] }, async () => {
    const instance = await client.scheduleNewOrchestration(spread, width);
    const squares = range(width).map((number) => number * number);
    equal(output(await finish(client, instance)), squares, "results in order");
    const events = await checkHistory(hub, client, instance);
    equal(only(events, "TaskScheduled").length, width, "scheduled");
    equal(only(events, "TaskCompleted").map((e) => JSON.parse(e.result)).sort((a, b) => a - b), squares, "each result once (S5)");
  });
};

/** Failing activities: retries, the failure as the orchestrator and the client see it (R4.30, R4.32). */
programs.retry = async (hub) => {
  const attempts = {};
  const flaky = (_, key) => {
    attempts[key] = (attempts[key] ?? 0) + 1;
    if (attempts[key] < 3) throw new RangeError(`attempt ${attempts[key]} of ${key}`);
    return attempts[key];
  };
  const broken = (_, key) => {
    attempts[key] = (attempts[key] ?? 0) + 1;
    throw new TypeError("no luck with “quotes”", { cause: new RangeError("the cause") });
  };
  const retry = (maxNumberOfAttempts) => new RetryPolicy({ maxNumberOfAttempts, firstRetryIntervalInMilliseconds: 50, backoffCoefficient: 2 });
  const persistent = async function* persistent(ctx, key) {
    return yield ctx.callActivity(flaky, key, { retry: retry(5) });
  };
  const careless = async function* careless(ctx, key) {
    yield ctx.callActivity(broken, key, { retry: retry(3) });
  };
  const careful = async function* careful(ctx, key) {
    try {
      yield ctx.callActivity(broken, key);
    } catch (error) {
      return [error instanceof TaskFailedError, error.details.errorType, error.details.message];
    }
  };
  // Both fail, and the join wants to hear of both before it gives up (R4.32).
  const both = async function* both(ctx, key) {
    const tasks = [ctx.callActivity(broken, `${key} 1`), ctx.callActivity(broken, `${key} 2`)];
    try {
      yield whenAll(tasks);
    } catch {
      return tasks.map((task) => task.isFailed);
    }
  };

  const client = hub.client();
  const orchestrators = [persistent, careless, careful, both];
  await hub.withWorker({ orchestrators, activities: [flaky, broken] }, async () => {
    let instance = await client.scheduleNewOrchestration(persistent, "wins");
    equal(output(await finish(client, instance)), 3, "the third attempt wins");
    equal(attempts.wins, 3, "attempts");
    let events = await checkHistory(hub, client, instance, { retries: true });
    equal(only(events, "TaskFailed").map((e) => [e.failureDetails.errorType, e.failureDetails.message]),
      [["RangeError", "attempt 1 of wins"], ["RangeError", "attempt 2 of wins"]], "failures");
    equal([only(events, "TaskScheduled").length, only(events, "TimerFired").length], [3, 2], "attempts and pauses");

    instance = await client.scheduleNewOrchestration(careless, "loses");
    const state = await finish(client, instance, Status.FAILED);
    equal(attempts.loses, 3, "attempts");
    equal(state.failureDetails.errorType, "TaskFailedError", "type");
    assert.match(state.failureDetails.message, /no luck with “quotes”/);
    events = await checkHistory(hub, client, instance, { retries: true });
    const details = events.at(-1).failureDetails;
    equal([details.errorType, details.message], ["TaskFailedError", state.failureDetails.message], "in history (R4.8)");
    assert.match(only(events, "TaskFailed")[0].failureDetails.stackTrace, /broken/);
    // The client of this SDK hides the cause; the history that it reads carries it all the same.
    if (!hub.reference) {
      const failed = (await hub.history(instance)).find((event) => event.hasTaskfailed()).getTaskfailed();
      const inner = failed.getFailuredetails().getInnerfailure();
      equal([inner.getErrortype(), inner.getErrormessage()], ["RangeError", "the cause"], "the cause (R4.30)");
    }

    equal(output(await finish(client, await client.scheduleNewOrchestration(careful, "handled"))),
      [true, "TypeError", "no luck with “quotes”"], "the failure as the orchestrator saw it");
    equal(output(await finish(client, await client.scheduleNewOrchestration(both, "both"))), [true, true], "both failures");
  });
};

/** null, 0, false and empty things stay themselves as input, argument, result, event and output (R2.7, R3.35, R3.59). */
programs.falsy = async (hub) => {
  const handBack = (_, value) => value;
  const passOn = async function* passOn(ctx, value) {
    const result = yield ctx.callActivity(handBack, value);
    const raised = yield ctx.waitForExternalEvent("value");
    ctx.setCustomStatus([value, result, raised].map((each) => JSON.stringify(each) ?? "nothing"));
    return raised;
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [passOn], activities: [handBack] }, async () => {
    for (const value of [null, 0, false, "", [], {}]) {
      const text = JSON.stringify(value);
      const instance = await client.scheduleNewOrchestration(passOn, value);
      await client.raiseOrchestrationEvent(instance, "value", value);
      const state = await finish(client, instance);
      equal(JSON.parse(state.serializedCustomStatus), [text, text, text], "as the orchestrator saw it");
      equal([state.serializedInput, state.serializedOutput], [text, text], "as text");
      const events = await checkHistory(hub, client, instance);
      equal([only(events, "TaskScheduled")[0].input, only(events, "TaskCompleted")[0].result,
        only(events, "EventRaised")[0].input, events.at(-1).result], [text, text, text, text], "texts in history");
    }
  });
};

/** About 1 MiB, byte for byte, as input, argument, result, event and output (R7.11, R7.12, R1.24). */
programs.large_payload = async (hub) => {
  const text = range(60_000).map((number) => `${number} {"ä\\": [`).join("").slice(0, 950_000);
  const handBack = (_, value) => value;
  const throughActivity = async function* throughActivity(ctx, value) {
    return yield ctx.callActivity(handBack, value);
  };
  const throughEvent = async function* throughEvent(ctx) {
    return yield ctx.waitForExternalEvent("blob");
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [throughActivity, throughEvent], activities: [handBack] }, async () => {
    const state = await finish(client, await client.scheduleNewOrchestration(throughActivity, text));
    assert(output(state) === text, "the result changed on its way");
    assert(JSON.parse(state.serializedInput) === text, "the input changed on its way");

    const instance = await client.scheduleNewOrchestration(throughEvent);
    await client.raiseOrchestrationEvent(instance, "blob", text);
    assert(output(await finish(client, instance)) === text, "the event changed on its way");
    const events = await checkHistory(hub, client, instance);
    assert(only(events, "EventRaised")[0].input === JSON.stringify(text), "the event in history (R2.92)");
  });
};

// --- events, timers, generations ---------------------------------------------------------------------

/** An external event against a timer, either may win (R2.40 to R2.43, R4.45, R4.46). */
programs.event_or_timer = async (hub) => {
  const race = async function* race(ctx, seconds) {
    const approval = ctx.waitForExternalEvent("Approval");
    const timeout = ctx.createTimer(seconds);
    if ((yield whenAny([approval, timeout])) === approval) return ["event", approval.getResult()];
    return ["timer", ctx.currentUtcDateTime.toISOString()];
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [race, echo] }, async () => {
    // Right after the start, perhaps before the first turn (R2.41).
    let instance = await client.scheduleNewOrchestration(race, 3600);
    await client.raiseOrchestrationEvent(instance, "Approval", { by: "me" });
    equal(output(await finish(client, instance)), ["event", { by: "me" }], "the event wins");
    let raised = only(await checkHistory(hub, client, instance), "EventRaised");
    equal(raised.map((e) => [e.name, e.input]), [["Approval", '{"by":"me"}']], "name and data as sent (R2.42)");

    // While it waits, with another spelling: the server keeps the name, the SDK ignores case.
    instance = await client.scheduleNewOrchestration(race, 3600);
    await client.waitForOrchestrationStart(instance);
    await client.raiseOrchestrationEvent(instance, "APPROVAL", 2);
    equal(output(await finish(client, instance)), ["event", 2], "the event wins again");
    raised = only(await checkHistory(hub, client, instance), "EventRaised");
    equal(raised.map((e) => e.name), ["APPROVAL"], "name as sent (R2.42)");

    instance = await client.scheduleNewOrchestration(race, 1);
    const state = await finish(client, instance);
    equal(output(state)[0], "timer", "the timer wins");
    assert(state.lastUpdatedAt - state.createdAt >= 1000, `early: ${state.createdAt}, ${state.lastUpdatedAt} (R4.46)`);
    const events = await checkHistory(hub, client, instance);
    equal(shape(events), ["OrchestratorStarted", "ExecutionStarted", "TimerCreated", "OrchestratorStarted", "TimerFired",
      "ExecutionCompleted"], "history");
    assert(new Date(output(state)[1]) >= events[2].fireAt, "the clock of the turn (R4.46)");

    // Too late is no error and changes nothing (R2.43).
    await client.raiseOrchestrationEvent(instance, "Approval", "too late");
    await runEcho(client);
    if (!hub.reference) equal(await client.getOrchestrationState(instance), state, "a terminal instance (S8, R2.29)");
    equal(shape(await checkHistory(hub, client, instance)), shape(events), "its history (R4.52)");
    if (!hub.reference) {
      await refused(codes.NOT_FOUND, () => client.raiseOrchestrationEvent("nobody", "Approval"), "nobody"); // R2.44
    }
  });
};

/** An activity, then a timer: the exact history that the managed service writes (R4.2). */
programs.timers = async (hub) => {
  const step = () => "done";
  const both = async function* both(ctx) {
    const result = yield ctx.callActivity(step);
    const before = ctx.currentUtcDateTime;
    yield ctx.createTimer(new Date(before.getTime() - 3_600_000)); // long past: at once, in a later turn (R4.45)
    yield ctx.createTimer(0.2);
    return [result, ctx.currentUtcDateTime - before];
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [both], activities: [step] }, async () => {
    const instance = await client.scheduleNewOrchestration(both);
    const [result, elapsed] = output(await finish(client, instance));
    equal(result, "done", "output");
    assert(elapsed >= 200, `the clock moved ${elapsed} ms over a timer of 200 ms (R4.46, R3.27)`);
    equal(shape(await checkHistory(hub, client, instance)), ["OrchestratorStarted", "ExecutionStarted", "TaskScheduled",
      "OrchestratorStarted", "TaskCompleted", "TimerCreated", "OrchestratorStarted", "TimerFired", "TimerCreated",
      "OrchestratorStarted", "TimerFired", "ExecutionCompleted"], "history");
  });
};

/** A loop of generations: state is handed on, events are kept in order, history starts over (R4.10, R4.55 to R4.57, R4.59, R4.60, R2.28). */
programs.continue_as_new = async (hub) => {
  const generations = 25;
  const items = 10;
  const ran = [];
  const step = (_, number) => {
    ran.push(number);
    return number + 1;
  };
  const counter = async function* counter(ctx, number) {
    number = yield ctx.callActivity(step, number);
    if (number < generations) return ctx.continueAsNew(number, false);
    return number;
  };
  const collect = async function* collect(ctx, got) {
    got = [...got, yield ctx.waitForExternalEvent("item")];
    if (got.length < items) return ctx.continueAsNew(got, true);
    return got;
  };
  const named = async function* named(ctx, generation) {
    yield ctx.waitForExternalEvent("go");
    if (generation === 0) ctx.continueAsNew(1, false);
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [counter, collect, named], activities: [step] }, async () => {
    let instance = await client.scheduleNewOrchestration(counter, 0);
    const state = await finish(client, instance);
    equal(output(state), generations, "output");
    equal(state.serializedInput, String(generations - 1), "the input of the last generation (R2.28)");
    equal(ran, range(generations), "each generation ran its activity once");
    equal(shape(await checkHistory(hub, client, instance)), ["OrchestratorStarted", "ExecutionStarted", "TaskScheduled",
      "OrchestratorStarted", "TaskCompleted", "ExecutionCompleted"], "only the last generation is left (R4.10)");

    // Some arrive before a generation waits for them, some after it has ended (R4.56).
    instance = await client.scheduleNewOrchestration(collect, []);
    for (const number of range(items)) await client.raiseOrchestrationEvent(instance, "item", number);
    equal(output(await finish(client, instance)), range(items), "no event lost, doubled or out of order (S7)");

    if (hub.reference) return;
    instance = await client.scheduleNewOrchestration(named, 0);
    await client.waitForOrchestrationStart(instance);
    const execution = async () =>
      only(await client.getOrchestrationHistory(instance), "ExecutionStarted")[0]?.orchestrationInstance.executionId;
    const first = await execution();
    await client.raiseOrchestrationEvent(instance, "go");
    await until("a new execution id (R4.55)", async () => {
      const found = await execution();
      return found && found !== first;
    });
    await client.raiseOrchestrationEvent(instance, "go");
    equal((await finish(client, instance)).serializedInput, "1", "input");
  });
};

/** A start in the future waits for its time, one in the past does not (R2.5, R2.6). */
programs.scheduled_start = async (hub) => {
  if (hub.reference) return;
  const now = async function now(ctx) {
    return ctx.currentUtcDateTime.toISOString();
  };
  // Must wait: the SDK gives way to a termination only in an orchestrator that has not returned.
  const waits = async function* waits(ctx) {
    yield ctx.waitForExternalEvent("never");
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [now, waits, echo] }, async () => {
    const due = new Date(Date.now() + 2000);
    let instance = await client.scheduleNewOrchestration(now, undefined, { startAt: due });
    await runEcho(client);
    const waiting = await client.getOrchestrationState(instance);
    assert(waiting.runtimeStatus === Status.PENDING || Date.now() >= due, `status ${Status[waiting.runtimeStatus]}`);
    const state = await finish(client, instance);
    const began = new Date(output(state));
    assert(began >= due && began - due < 5000, `due ${due.toISOString()}, began ${began.toISOString()} (R4.14)`);
    assert(state.createdAt < due, `created ${state.createdAt.toISOString()} (R4.15)`);
    const started = (await checkHistory(hub, client, instance))[1];
    equal(started.scheduledStartTimestamp, due, "executionStarted (R2.6)");

    await finish(client, await client.scheduleNewOrchestration(now, undefined, { startAt: new Date(Date.now() - 86_400_000) }));

    instance = await client.scheduleNewOrchestration(waits, undefined, { startAt: new Date(Date.now() + 3_600_000) });
    await client.terminateOrchestration(instance, "never mind");
    equal(output(await finish(client, instance, Status.TERMINATED)), "never mind", "output (R2.48)");
  });
};

// --- control --------------------------------------------------------------------------------------------

/** Suspend becomes visible, holds events, and resume delivers them in order (R2.56 to R2.59, R4.64 to R4.70). */
programs.suspend_resume = async (hub) => {
  const recorded = [];
  const record = (_, item) => {
    recorded.push(item);
    return item;
  };
  const collect = async function* collect(ctx, count) {
    const got = [];
    while (got.length < count) {
      const item = yield ctx.waitForExternalEvent("item");
      got.push(yield ctx.callActivity(record, item));
      ctx.setCustomStatus(got.length);
    }
    return got;
  };

  const client = hub.client();
  const staysSuspended = async (instance) => {
    await runEcho(client);
    equal((await client.getOrchestrationState(instance)).runtimeStatus, Status.SUSPENDED, "status");
  };
  await hub.withWorker({ orchestrators: [collect, echo], activities: [record] }, async () => {
    // In the middle of its work.
    let instance = await client.scheduleNewOrchestration(collect, 3);
    await client.raiseOrchestrationEvent(instance, "item", "a");
    await until("the first item is done", async () => (await client.getOrchestrationState(instance)).serializedCustomStatus === "1");
    await client.suspendOrchestration(instance);
    await hasStatus(client, instance, Status.SUSPENDED);
    await client.suspendOrchestration(instance); // twice is once (R2.57)
    await client.raiseOrchestrationEvent(instance, "item", "b");
    await client.raiseOrchestrationEvent(instance, "item", "c");
    await staysSuspended(instance);
    equal(recorded, ["a"], "work done while suspended (R4.64)");
    await client.resumeOrchestration(instance);
    equal(output(await finish(client, instance)), ["a", "b", "c"], "held events come in order (R4.69)");
    equal(recorded, ["a", "b", "c"], "each activity ran once (R4.65)");
    const names = shape(await checkHistory(hub, client, instance));
    if (!hub.reference) {
      equal(names.filter((name) => /Suspended|Resumed/.test(name)), ["ExecutionSuspended", "ExecutionResumed"], "once (R4.68)");
      const at = names.indexOf("ExecutionResumed");
      equal(names.slice(at - 1, at + 3), ["OrchestratorStarted", "ExecutionResumed", "EventRaised", "EventRaised"], "one turn (R4.69)");
    }
    await client.suspendOrchestration(instance); // terminal, so nothing happens (R2.57)
    await client.resumeOrchestration(instance);
    equal((await client.getOrchestrationState(instance)).runtimeStatus, Status.COMPLETED, "status");

    // Right after the start (R2.59, R4.71).
    instance = await client.scheduleNewOrchestration(collect, 1);
    await client.suspendOrchestration(instance);
    await hasStatus(client, instance, Status.SUSPENDED);
    await client.raiseOrchestrationEvent(instance, "item", "d");
    await staysSuspended(instance);
    equal(recorded, ["a", "b", "c"], "work done while suspended");
    await client.resumeOrchestration(instance);
    equal(output(await finish(client, instance)), ["d"], "output");

    // Terminate needs no resume (R4.70).
    instance = await client.scheduleNewOrchestration(collect, 1);
    await client.suspendOrchestration(instance);
    await hasStatus(client, instance, Status.SUSPENDED);
    await client.terminateOrchestration(instance, "enough");
    equal(output(await finish(client, instance, Status.TERMINATED)), "enough", "output");
  });
};

/** Terminate: while waiting, right after the start, and with an activity at work (R2.47 to R2.50, R2.53, S8). */
programs.terminate = async (hub) => {
  let begin;
  let release;
  const atWork = new Promise((resolve) => (begin = resolve));
  const released = new Promise((resolve) => (release = resolve));
  const hold = async () => {
    begin();
    await released;
    return "too late";
  };
  const waits = async function* waits(ctx) {
    yield ctx.waitForExternalEvent("never");
  };
  const works = async function* works(ctx) {
    return yield ctx.callActivity(hold);
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [waits, works, echo], activities: [hold] }, async () => {
    let instance = await client.scheduleNewOrchestration(waits);
    await client.waitForOrchestrationStart(instance);
    await client.terminateOrchestration(instance, { why: "enough", zero: 0 });
    let state = await finish(client, instance, Status.TERMINATED);
    equal(output(state), { why: "enough", zero: 0 }, "output (R2.47)");
    const events = await checkHistory(hub, client, instance);
    equal(only(events, "ExecutionTerminated").map((e) => e.input), [state.serializedOutput], "executionTerminated");

    // Terminal is final; and whatever comes too late, or for nobody, is no error (R2.43, R2.49).
    await client.terminateOrchestration(instance, "again");
    await client.raiseOrchestrationEvent(instance, "never", 1);
    await client.terminateOrchestration("nobody", "?");
    await runEcho(client);
    if (!hub.reference) equal(await client.getOrchestrationState(instance), state, "a terminal instance (S8, R2.29)");
    equal(shape(await checkHistory(hub, client, instance)), shape(events), "its history (R4.52)");

    for (const number of range(10)) {
      instance = await client.scheduleNewOrchestration(waits);
      await client.terminateOrchestration(instance, number);
      equal(output(await finish(client, instance, Status.TERMINATED)), number, "right after the start (R2.48)");
    }

    instance = await client.scheduleNewOrchestration(works);
    await atWork;
    await client.terminateOrchestration(instance, "now");
    state = await finish(client, instance, Status.TERMINATED);
    const { length } = await client.getOrchestrationHistory(instance);
    release();
    await runEcho(client);
    if (!hub.reference) {
      equal(await client.getOrchestrationState(instance), state, "after the activity's result (R2.53)");
      equal((await client.getOrchestrationHistory(instance)).length, length, "history after the activity's result");
    }
  });
};

/** Visible with the first turn, changed while running, kept after the end, cleared by nothing (R2.33, R4.54, R4.86). */
programs.custom_status = async (hub) => {
  const tells = async function* tells(ctx, last) {
    ctx.setCustomStatus({ step: 1, of: 2 });
    yield ctx.waitForExternalEvent("on");
    ctx.setCustomStatus("half way");
    yield ctx.waitForExternalEvent("on");
    ctx.setCustomStatus(last);
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [tells] }, async () => {
    for (const last of ["done", 0, "", null]) {
      const instance = await client.scheduleNewOrchestration(tells, last);
      const first = await client.waitForOrchestrationStart(instance, true, PATIENCE);
      equal([first.serializedCustomStatus, first.runtimeStatus], ['{"step":1,"of":2}', Status.RUNNING], "with the first turn (R2.33)");
      await client.raiseOrchestrationEvent(instance, "on");
      await until("the second status", async () =>
        (await client.getOrchestrationState(instance)).serializedCustomStatus === '"half way"');
      await client.raiseOrchestrationEvent(instance, "on");
      const state = await finish(client, instance);
      equal(state.serializedCustomStatus, last === null ? undefined : JSON.stringify(last), "after the end (R4.54, R4.86)");
    }
  });
};

/** A second start with an id that is taken: refused while it runs, a fresh start once it is over (R2.14, R2.15, R2.20, R2.22). */
programs.id_reuse = async (hub) => {
  const waits = async function* waits(ctx, value) {
    ctx.setCustomStatus(`custom ${value}`);
    return [value, yield ctx.waitForExternalEvent("go")];
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [waits] }, async () => {
    const start = (value) => client.scheduleNewOrchestration(waits, value, "taken");
    await start(1);
    await client.waitForOrchestrationStart("taken");
    await refused(codes.ALREADY_EXISTS, () => start("refused"),
      ...(hub.reference ? [] : ["orchestration instance already exists", "taken"]));
    await client.raiseOrchestrationEvent("taken", "go", "a");
    const first = await finish(client, "taken");
    equal(output(first), [1, "a"], "the refused start left it alone");

    if (hub.reference) return;
    await start(2);
    await client.waitForOrchestrationStart("taken");
    const second = await client.getOrchestrationState("taken");
    equal([second.runtimeStatus, second.serializedOutput, second.serializedCustomStatus],
      [Status.RUNNING, undefined, '"custom 2"'], "what the first left behind (R2.20)");
    assert(second.createdAt > first.createdAt, "created (R2.20)");
    await client.raiseOrchestrationEvent("taken", "go", "b");
    equal(output(await finish(client, "taken")), [2, "b"], "output of the second");
    equal(only(await checkHistory(hub, client, "taken"), "EventRaised").map((e) => e.input), ['"b"'], "history starts over");
    await refused(codes.INVALID_ARGUMENT, () => client.scheduleNewOrchestration(waits, 3, "x".repeat(101)), "length"); // R2.3
  });
};

/** Tags and version reach the orchestrator, the state and the history (R2.8, R2.9, R3.33, R7.15). */
programs.tags_and_version = async (hub) => {
  const tell = (_, value) => value;
  const reports = async function* reports(ctx) {
    return yield ctx.callActivity(tell, ctx.version, { tags: { kind: "io", empty: "" }, version: "7" });
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [reports], activities: [tell] }, async () => {
    const tags = { team: "blue", stage: "über", empty: "" };
    let instance = await client.scheduleNewOrchestration(reports, undefined, { tags, version: "1.4.2" });
    let state = await finish(client, instance);
    equal(output(state), "1.4.2", "as the orchestrator saw it");
    if (!hub.reference) equal(state.tags, tags, "as the client saw it (R2.9)");
    const events = await checkHistory(hub, client, instance);
    const started = only(events, "ExecutionStarted")[0];
    equal([started.version, started.tags], ["1.4.2", tags], "executionStarted (R4.7)");
    if (hub.reference) return;
    const scheduled = only(events, "TaskScheduled")[0];
    equal([scheduled.version, scheduled.tags], ["7", { kind: "io", empty: "" }], "taskScheduled");
    const request = new pb.GetInstanceRequest();
    request.setInstanceid(instance);
    equal((await hub.call("getInstance", request)).getOrchestrationstate().getVersion()?.getValue(), "1.4.2", "state (R2.30)");

    instance = await client.scheduleNewOrchestration(reports);
    state = await finish(client, instance);
    equal([output(state), state.tags], ["", undefined], "none were given");
    request.setInstanceid(instance);
    equal((await hub.call("getInstance", request)).getOrchestrationstate().hasVersion(), false, "none was given (R2.8)");
  });
};

// --- workers ----------------------------------------------------------------------------------------------

/** Counts what it runs in its log; meets the others in a folder that `role` names: `name@folder`. */
workers.concurrent_workers = (role) => {
  const [name, folder] = role.split("@");
  const square = (_, number) => {
    console.log(`ran ${number}`);
    return number * number;
  };
  const meet = async (_, people) => {
    writeFileSync(join(folder, name), "");
    await until(`${people} at the meeting`, () => readdirSync(folder).length === people);
    return name;
  };
  const sumOfSquares = async function* sumOfSquares(ctx, numbers) {
    const squares = yield whenAll(numbers.map((number) => ctx.callActivity(square, number)));
    return squares.reduce((sum, each) => sum + each, 0);
  };
  const meeting = async function* meeting(ctx, [people, seats]) {
    return yield whenAll(range(seats).map(() => ctx.callActivity(meet, people)));
  };
  return { orchestrators: [sumOfSquares, meeting], activities: [square, meet] };
};

/** Three worker processes share the work, three clients give it (R1.5, R3.2, R3.16, R3.17, R3.21). */
programs.concurrent_workers = async (hub) => {
  const names = ["north", "south", "west"];
  const folder = mkdtempSync(join(tmpdir(), "durahub-meeting-"));
  const processes = names.map((name) => hub.workerProcess("concurrent_workers", `${name}@${folder}`));
  const client = hub.client();
  try {
    if (!hub.reference) {
      // Every activity is held until all three workers have one. A worker that states no limit gets a
      // moderate number at once (R3.2, R3.22), so 300 cannot all be waiting on two of them.
      const met = output(await finish(client, await client.scheduleNewOrchestration("meeting", [names.length, 300])));
      equal([...new Set(met)].sort(), names, "who met (R3.21)");
    }
    const width = 6;
    const customer = async (offset) => {
      const mine = hub.client();
      const started = [];
      for (const at of range(10)) {
        const numbers = range(width, offset + at * width);
        started.push([await mine.scheduleNewOrchestration("sumOfSquares", numbers), numbers]);
      }
      for (const [instance, numbers] of started) {
        const sum = numbers.reduce((total, number) => total + number * number, 0);
        equal(output(await finish(mine, instance)), sum, `sum of ${instance}`);
        await checkHistory(hub, mine, instance);
      }
    };
    await Promise.all([0, 1000, 2000].map(customer));
    const expected = [0, 1000, 2000].flatMap((offset) => range(10 * width, offset)).map((number) => `ran ${number}`);
    // A worker says what it runs before it answers, but the line may still be in the pipe.
    const ran = () => processes.flatMap((worker) => worker.lines).filter((line) => line.startsWith("ran "));
    await until("all lines read", () => ran().length >= expected.length);
    equal(ran().sort(), expected.sort(), "activities that ran: each once, since all workers are healthy");
  } finally {
    await Promise.all(processes.map((worker) => worker.kill()));
    rmSync(folder, { recursive: true, force: true });
  }
};

/** The victim stops for ever in the activity `hold` and in the orchestrator `pauses`; others go through. */
workers.worker_killed = (role) => {
  const forever = () => sleep(10 * PATIENCE * 1000);
  const tell = (_, what) => [what, role];
  const hold = async (_, what) => {
    console.log("holds an activity");
    if (role === "victim") await forever();
    return [what, role];
  };
  const holds = async function* holds(ctx) {
    return yield ctx.callActivity(hold, "held");
  };
  const pauses = async function* pauses(ctx) {
    const first = yield ctx.callActivity(tell, "before");
    ctx.setCustomStatus("ready");
    yield ctx.waitForExternalEvent("go");
    if (role === "victim") {
      console.log("holds an orchestrator");
      await forever();
    }
    return [first, yield ctx.callActivity(tell, "after")];
  };
  return { orchestrators: [holds, pauses, echo], activities: [tell, hold] };
};

/** SIGKILL a worker that holds an activity and an orchestrator: another one finishes both (R3.49, R3.20, L3). */
programs.worker_killed = async (hub) => {
  if (hub.reference) return;
  const client = hub.client();
  const victim = hub.workerProcess("worker_killed", "victim");
  try {
    const turn = await client.scheduleNewOrchestration("pauses");
    await until("the first half is done", async () => (await client.getOrchestrationState(turn)).serializedCustomStatus === '"ready"');
    const activity = await client.scheduleNewOrchestration("holds");
    await victim.waitFor("holds an activity");
    await client.raiseOrchestrationEvent(turn, "go");
    await victim.waitFor("holds an orchestrator");

    await hub.withWorker(workers.worker_killed("heir"), async () => {
      // What a living worker holds stays with it, whatever others ask for (R3.16).
      for (const _ of range(5)) await runEcho(client);
      for (const instance of [turn, activity]) {
        equal((await client.getOrchestrationState(instance)).runtimeStatus, Status.RUNNING, "status");
      }
      await victim.kill();
      equal(output(await finish(client, activity)), ["held", "heir"], "the activity");
      equal(output(await finish(client, turn)), [["before", "victim"], ["after", "heir"]],
        "the orchestrator: what the victim had finished is kept (S5)");
    });
    for (const instance of [turn, activity]) await checkHistory(hub, client, instance);
  } finally {
    await victim.kill();
  }
};

// --- many instances ---------------------------------------------------------------------------------

/** Queries with every filter, ids of ended instances, page by page (R2.73 to R2.83). */
programs.queries = async (hub) => {
  const ends = async function* ends(ctx, how) {
    ctx.setCustomStatus(how);
    if (how === "wait") yield ctx.waitForExternalEvent("go");
    if (how === "fail") throw new Error("asked to");
    return how;
  };
  const client = hub.client();
  await hub.withWorker({ orchestrators: [ends] }, async () => {
    const before = new Date(Date.now() - 5000);
    const mine = range(21).map((number) => `q-${String(number).padStart(2, "0")}`);
    const bad = mine.filter((_, number) => number % 7 === 0);
    for (const id of mine) await client.scheduleNewOrchestration(ends, bad.includes(id) ? "fail" : "ok", id);
    await client.scheduleNewOrchestration(ends, "wait", "Q-waits");
    for (const id of mine) await client.waitForOrchestrationCompletion(id, false, PATIENCE);
    await client.waitForOrchestrationStart("Q-waits", false, PATIENCE);

    const all = async (query) => {
      const states = [];
      for await (const state of client.getAllInstances(query)) states.push(state);
      return states;
    };
    const ids = async (query) => (await all(query)).map((state) => state.instanceId).sort();
    equal(await ids({}), ["Q-waits", ...mine], "everything");
    equal(await ids({ statuses: [Status.FAILED] }), bad, "by status");
    equal(await ids({ instanceIdPrefix: "q-" }), mine, "by prefix, case-sensitive");
    equal(await ids({ instanceIdPrefix: "q-", statuses: [Status.RUNNING] }), [], "both conditions hold");
    equal(await ids({ createdFrom: before }), ["Q-waits", ...mine], "created since");
    equal(await ids({ createdTo: before }), [], "created until then");
    const sizes = [];
    for await (const page of client.getAllInstances({ instanceIdPrefix: "q-" }).asPages(undefined, 5)) sizes.push(page.values.length);
    equal(sizes, [5, 5, 5, 5, 1], "no page is empty at the end (R2.76)");
    const plain = await all({ statuses: [Status.FAILED], fetchInputsAndOutputs: false });
    equal(plain.map((state) => [state.serializedInput, state.serializedOutput, state.serializedCustomStatus, state.failureDetails].filter(Boolean)),
      [[], [], []], "nobody asked for payloads (R2.80)");
    const whole = await all({ statuses: [Status.FAILED], fetchInputsAndOutputs: true });
    equal(whole.map((state) => [state.serializedInput, state.failureDetails.message]), Array(3).fill(['"fail"', "asked to"]), "whole");

    const listed = [];
    let [pages, lastInstanceKey] = [0, undefined];
    do {
      const page = await client.listInstanceIds({ pageSize: 8, lastInstanceKey });
      listed.push(...page.values);
      [pages, lastInstanceKey] = [pages + 1, page.continuationToken];
    } while (lastInstanceKey);
    equal([[...listed].sort(), pages], [mine, 3], "ids of ended ones (R2.83)");
    const failed = await client.listInstanceIds({ runtimeStatus: [Status.FAILED] });
    equal([...failed.values], listed.filter((id) => bad.includes(id)), "failed ones");
    equal([...(await client.listInstanceIds({ completedTimeTo: before })).values], [], "ended before");
    await client.raiseOrchestrationEvent("Q-waits", "go");
    await finish(client, "Q-waits");
    equal([...(await client.listInstanceIds({ completedTimeFrom: before })).values], [...listed, "Q-waits"], "the last at the end");
  });
};

/** Purges by id, with children, by filter (R2.85 to R2.89). */
programs.purges = async (hub) => {
  const leaf = async function leaf(_, value) {
    return value;
  };
  const tree = async function* tree(ctx, value) {
    yield ctx.callSubOrchestrator(leaf, 1, { instanceId: `${ctx.instanceId}-a` });
    yield ctx.callSubOrchestrator(leaf, 2, { instanceId: `${ctx.instanceId}-b` });
    return value;
  };
  const waits = async function* waits(ctx) {
    yield ctx.waitForExternalEvent("go");
  };
  const client = hub.client();
  await hub.withWorker({ orchestrators: [leaf, tree, waits] }, async () => {
    for (const id of ["t1", "t2"]) await finish(client, await client.scheduleNewOrchestration(tree, "x", id));
    await client.scheduleNewOrchestration(waits, undefined, "waits");
    await client.waitForOrchestrationStart("waits", false, PATIENCE);
    const purged = async (value, options) => (await client.purgeOrchestration(value, options))?.deletedInstanceCount;
    const state = (id) => client.getOrchestrationState(id);

    equal(await purged("waits"), 0, "it has not ended (R2.85)");
    equal(await purged("nobody"), 0, "unknown");
    equal(await purged("t1", { recursive: false }), 1, "alone (R2.89)");
    equal([await state("t1"), (await state("t1-a")) !== undefined], [undefined, true], "its child stays");
    equal(await purged("t2", { recursive: true }), 3, "with its children (R2.89)");
    equal([await state("t2"), await state("t2-a"), await state("t2-b")], [undefined, undefined, undefined], "gone");
    equal(await client.getOrchestrationHistory("t2"), [], "its history (R2.93)");

    const criteria = new sdk.PurgeInstanceCriteria();
    criteria.setCreatedTimeFrom(new Date(Date.now() - 3_600_000));
    criteria.setCreatedTimeTo(new Date(Date.now() + 5000));
    criteria.setRuntimeStatusList([Status.COMPLETED, Status.FAILED]);
    equal(await purged(criteria), 2, "t1-a and t1-b (R2.86)");
    const left = [];
    for await (const each of client.getAllInstances({})) left.push(each.instanceId);
    equal(left, ["waits"], "what is left");
  });
};

// --- hubs ---------------------------------------------------------------------------------------------------

/** A hub that nobody made: NOT_FOUND, for clients and for workers (R1.9, R1.12). */
programs.unknown_hub = async (hub) => {
  if (hub.reference) return;
  const absent = `${hub.name}-absent`;
  const text = `Task hub not found: ${absent}`;
  const client = hub.client(absent);
  await refused(codes.NOT_FOUND, () => client.scheduleNewOrchestration(echo), text);
  await refused(codes.NOT_FOUND, () => client.getOrchestrationState("x"), text);
  await refused(codes.NOT_FOUND, () => client.waitForOrchestrationCompletion("x", true, PATIENCE), text);
  const error = await hub.workerRefusal(absent);
  equal([codes[error.code], error.details.includes(text)], ["NOT_FOUND", true], `the worker stream: ${error.details}`);
  await hub.withWorker({ orchestrators: [echo] }, () => runEcho(hub.client()));
};

// --- command line ---------------------------------------------------------------------------------------------

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    endpoint: { type: "string" },
    "task-hub": { type: "string", default: "default" },
    list: { type: "boolean" },
    reference: { type: "boolean" },
    worker: { type: "string" },
  },
});
if (options.list) {
  console.log(Object.keys(programs).join("\n"));
  process.exit(0);
}
const [name] = positionals;
if (!Object.hasOwn(programs, name ?? "") || !options.endpoint) {
  console.error(`usage: node programs.mjs NAME --endpoint HOST:PORT --task-hub HUB; names: ${Object.keys(programs).join(", ")}`);
  process.exit(2);
}

const hub = new Hub(options.endpoint, options["task-hub"], options.reference);
if (options.worker) {
  // A child of a program: works until the parent kills it, or is gone itself.
  process.stdin.resume().on("end", () => process.exit(0));
  await hub.withWorker(workers[name](options.worker), () => new Promise(() => {}));
}
setTimeout(() => {
  console.error(`${name} did not end within 150 s`);
  process.exit(1);
}, 150_000);
process.on("unhandledRejection", (error) => {
  console.error(`${name}: unhandled`, error);
  process.exit(1);
});
try {
  await programs[name](hub);
} catch (error) {
  console.error(`${name} failed:`, error);
  process.exit(1);
}
console.log(`ok ${name}`);
process.exit(0);
