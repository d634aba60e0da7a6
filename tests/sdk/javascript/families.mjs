// Programs about several orchestrations: children, events, ends that go down the tree, rewind and restart.
//
// Part of programs.mjs, which says how they are run.

import assert from "node:assert/strict";

import { Status, checkHistory, equal, finish, hasStatus, only, output, sdk, shape, until } from "./support.mjs";

const { RetryPolicy, terminateOptions, whenAll } = sdk;
const range = (count) => Array.from({ length: count }, (_, at) => at);
const exists = (client, instance) => until(`${instance} is there`, () => client.getOrchestrationState(instance));
const retry = (maxNumberOfAttempts) => new RetryPolicy({ maxNumberOfAttempts, firstRetryIntervalInMilliseconds: 50 });

export const families = {};

/** Children one after the other, at once and three deep: ids, parents, results, histories (A3, R4.34, R4.35). */
families.sub_orchestrations = async (hub) => {
  const child = async function child(ctx, value) {
    return [value, ctx.parent?.instanceId, ctx.parent?.name, ctx.parent?.taskScheduledId];
  };
  const one = async function* one(ctx, value) {
    return yield ctx.callSubOrchestrator(child, value);
  };
  const many = async function* many(ctx, width) {
    return yield whenAll(range(width).map((number) => ctx.callSubOrchestrator(child, number)));
  };
  const deep = async function* deep(ctx, levels) {
    if (levels === 0) return ctx.instanceId;
    return yield ctx.callSubOrchestrator(deep, levels - 1);
  };
  const named = async function* named(ctx) {
    yield ctx.callSubOrchestrator(child, "n", { instanceId: "my-own-id", version: "9.1" });
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [child, one, many, deep, named] }, async () => {
    let parent;
    for (const value of ["text", 0, false, "", { a: [1] }]) {
      parent = await client.scheduleNewOrchestration(one, value);
      equal(output(await finish(client, parent)), [value, parent, "one", 1], "what the child was given, and its parent");
    }
    const events = await checkHistory(hub, client, parent);
    equal(shape(events), ["OrchestratorStarted", "ExecutionStarted", "SubOrchestrationInstanceCreated",
      "OrchestratorStarted", "SubOrchestrationInstanceCompleted", "ExecutionCompleted"], "history (A3)");
    const [, started, created, , completed] = events;
    equal(created.instanceId, `${started.orchestrationInstance.executionId}:0001`, "the child's id (R4.35)");
    equal([completed.taskScheduledId, completed.eventId], [created.eventId, -1], "the answer (R4.3)");
    const born = (await checkHistory(hub, client, created.instanceId))[1];
    equal(born.parentInstance.orchestrationInstance, started.orchestrationInstance, "the parent (R4.34)");

    const width = 40;
    parent = await client.scheduleNewOrchestration(many, width);
    const results = output(await finish(client, parent));
    equal(results.map(([value]) => value), range(width), "results in order");
    const answers = only(await checkHistory(hub, client, parent), "SubOrchestrationInstanceCompleted");
    equal(new Set(answers.map((answer) => answer.taskScheduledId)).size, width, "each child answers once (S9)");
    equal(answers.length, width, "answers");

    // The ids of this SDK do not grow with the depth.
    const deepest = output(await finish(client, await client.scheduleNewOrchestration(deep, 3)));
    assert.match(deepest, /^[0-9a-f]{32}:[0-9a-f]{4}$/, "the id of the deepest one (R2.12)");

    await finish(client, await client.scheduleNewOrchestration(named));
    equal((await checkHistory(hub, client, "my-own-id"))[1].version, "9.1", "its version (R7.15)");
  });
};

/** Children that fail: retried, caught, and ids that are in use (R4.37 to R4.39). */
families.sub_orchestration_failure = async (hub) => {
  const attempts = {};
  const flaky = async function flaky(ctx, key) {
    if (!ctx.isReplaying) attempts[key] = (attempts[key] ?? 0) + 1;
    if (attempts[key] < 3) throw new RangeError(`attempt ${attempts[key]} of ${key}`);
    return attempts[key];
  };
  const persistent = async function* persistent(ctx, key) {
    return yield ctx.callSubOrchestrator(flaky, key, { retry: retry(5) });
  };
  const broken = async function broken() {
    throw new TypeError("no luck");
  };
  const careless = async function* careless(ctx) {
    yield ctx.callSubOrchestrator(broken);
  };
  const waits = async function* waits(ctx) {
    return yield ctx.waitForExternalEvent("go");
  };
  const wants = async function* wants(ctx, instanceId) {
    try {
      return yield ctx.callSubOrchestrator(waits, undefined, { instanceId });
    } catch (error) {
      return error.details.message;
    }
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [flaky, persistent, broken, careless, waits, wants] }, async () => {
    const parent = await client.scheduleNewOrchestration(persistent, "wins");
    equal(output(await finish(client, parent)), 3, "the third attempt wins");
    const events = await checkHistory(hub, client, parent, { retries: true });
    equal(only(events, "SubOrchestrationInstanceFailed").map((e) => e.failureDetails.message),
      ["attempt 1 of wins", "attempt 2 of wins"], "failures");
    const state = await finish(client, await client.scheduleNewOrchestration(careless), Status.FAILED);
    assert(state.failureDetails.message.includes("no luck"), state.failureDetails.message);

    const first = await client.scheduleNewOrchestration(wants, "wanted");
    await exists(client, "wanted");
    const second = await client.scheduleNewOrchestration(wants, "wanted");
    assert.match(output(await finish(client, second)), /already exists/, "an id in use (R4.38)");
    await client.raiseOrchestrationEvent("wanted", "go", "went");
    equal(output(await finish(client, first)), "went", "whoever came first has the child");
    const third = await client.scheduleNewOrchestration(wants, "wanted");
    await until("the id is used again (R4.37)", async () =>
      (await client.getOrchestrationState("wanted")).runtimeStatus !== Status.COMPLETED);
    await client.terminateOrchestration("wanted", "stop");
    assert.match(output(await finish(client, third)), /stop/, "a child that was terminated (R4.39)");

    const long = await client.scheduleNewOrchestration(wants, "x".repeat(101));
    assert.match(output(await finish(client, long)), /length/, "an id that is too long (R2.4)");
  });
};

/** Events from one orchestration to another, to itself, to nobody (R4.23, R4.24, S7). */
families.events_between = async (hub) => {
  const count = 30;
  const sends = async function* sends(ctx, receiver) {
    for (const number of range(count)) ctx.sendEvent(receiver, "number", number);
    ctx.sendEvent("nobody", "number", 1);
    ctx.sendEvent(ctx.instanceId, "mine");
    yield ctx.waitForExternalEvent("mine");
    return yield ctx.waitForExternalEvent("thanks");
  };
  const receives = async function* receives(ctx, sender) {
    const numbers = [];
    for (const _ of range(count)) numbers.push(yield ctx.waitForExternalEvent("number"));
    ctx.sendEvent(sender, "thanks", numbers);
  };
  const counts = async function* counts(ctx, number) {
    if (number === 5) return number;
    ctx.sendEvent(ctx.instanceId, "next", number + 1);
    ctx.continueAsNew(yield ctx.waitForExternalEvent("next"), false);
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [sends, receives, counts] }, async () => {
    await client.scheduleNewOrchestration(receives, "sender", "receiver");
    await client.scheduleNewOrchestration(sends, "receiver", "sender");
    equal(output(await finish(client, "sender")), range(count), "events in order, each once (S7)");
    const sent = only(await checkHistory(hub, client, "sender"), "EventSent");
    equal(sent.slice(0, count + 1).map((e) => [e.instanceId, e.name, e.input]),
      [...range(count).map((n) => ["receiver", "number", String(n)]), ["nobody", "number", "1"]], "eventSent (R4.23)");
    equal(output(await finish(client, await client.scheduleNewOrchestration(counts, 0))), 5, "to itself (R4.56)");
  });
};

/** Terminations with and without the children, through a child that has ended (R2.50 to R2.52). */
families.terminate_tree = async (hub) => {
  const leaf = async function* leaf(ctx) {
    yield ctx.waitForExternalEvent("never");
  };
  const passing = async function passing(ctx, low) {
    ctx.callSubOrchestrator(leaf, undefined, { instanceId: low });
    return "early";
  };
  const top = async function* top(ctx, name) {
    yield ctx.callSubOrchestrator(passing, `${name}-low`, { instanceId: `${name}-passing` });
    yield whenAll(range(3).map((n) => ctx.callSubOrchestrator(leaf, undefined, { instanceId: `${name}-leaf-${n}` })));
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [leaf, passing, top] }, async () => {
    for (const [name, recursive] of [["tree", true], ["alone", false]]) {
      await client.scheduleNewOrchestration(top, name, name);
      const others = [`${name}-low`, ...range(3).map((n) => `${name}-leaf-${n}`)];
      for (const other of others) {
        await exists(client, other);
        await hasStatus(client, other, Status.RUNNING);
      }
      await client.terminateOrchestration(name, terminateOptions({ output: "enough", recursive }));
      await finish(client, name, Status.TERMINATED);
      equal(output(await finish(client, `${name}-passing`)), "early", "a child that had ended");
      for (const other of others) {
        if (recursive) {
          equal(output(await finish(client, other, Status.TERMINATED)), "enough", `output of ${other} (R2.51)`);
        } else {
          equal((await client.getOrchestrationState(other)).runtimeStatus, Status.RUNNING, `${other} (R2.52)`);
        }
      }
    }
  });
};

/** A failed instance tries again: activities, children, twice (R2.60 to R2.64). */
families.rewind = async (hub) => {
  const calls = {};
  const failures = {};
  const count = (key) => (calls[key] = (calls[key] ?? 0) + 1);
  const good = (_, key) => {
    count(`${key} good`);
    return "good";
  };
  const bad = (_, key) => {
    count(`${key} bad`);
    if (failures[key]-- > 0) throw new RangeError(`bad ${key}`);
    return "bad";
  };
  const works = async function* works(ctx, key) {
    const first = yield ctx.callActivity(good, key);
    return [first, yield ctx.callActivity(bad, key)];
  };
  const parent = async function* parent(ctx, key) {
    return yield ctx.callSubOrchestrator(works, key, { instanceId: `${key}-child` });
  };
  const waits = async function* waits(ctx) {
    yield ctx.waitForExternalEvent("never");
  };

  const client = hub.client();
  const failsOnce = async (orchestrator, key, times = 1) => {
    failures[key] = times;
    await client.scheduleNewOrchestration(orchestrator, key, key);
    await finish(client, key, Status.FAILED);
  };
  await hub.withWorker({ orchestrators: [works, parent, waits], activities: [good, bad] }, async () => {
    await failsOnce(works, "one");
    await client.rewindInstance("one", "mended");
    equal(output(await finish(client, "one")), ["good", "bad"], "output");
    equal([calls["one good"], calls["one bad"]], [1, 2], "runs (R2.63)");
    equal(only(await checkHistory(hub, client, "one"), "ExecutionRewound").map((e) => e.reason), ["mended"], "R2.62");

    await failsOnce(works, "two", 2);
    await client.rewindInstance("two", "");
    await finish(client, "two", Status.FAILED);
    await client.rewindInstance("two", "");
    equal(output(await finish(client, "two")), ["good", "bad"], "the second rewind");
    equal([calls["two good"], calls["two bad"]], [1, 3], "runs");

    await failsOnce(parent, "family");
    await client.rewindInstance("family", "");
    equal(output(await finish(client, "family")), ["good", "bad"], "a failed child is rewound (R2.64)");
    equal([calls["family good"], calls["family bad"]], [1, 2], "runs");
    await finish(client, "family-child");

    await client.scheduleNewOrchestration(waits, undefined, "waits");
    await hasStatus(client, "waits", Status.RUNNING);
    await assert.rejects(client.rewindInstance("waits", ""), /not allow|precondition|running|not in a failed state/i);
    await assert.rejects(client.rewindInstance("one", ""), /not allow|precondition|running|not in a failed state/i);
    await assert.rejects(client.rewindInstance("nobody", ""), /not found/);
  });
};

/** An instance starts again, under its id or another (R2.67 to R2.71). */
families.restart = async (hub) => {
  const works = async function* works(ctx, value) {
    yield ctx.createTimer(0.001);
    if (value === "fail") throw new RangeError("as asked");
    return value;
  };
  const waits = async function* waits(ctx) {
    yield ctx.waitForExternalEvent("never");
  };

  const client = hub.client();
  await hub.withWorker({ orchestrators: [works, waits] }, async () => {
    await client.scheduleNewOrchestration(works, { a: 1 }, { instanceId: "again", tags: { t: "1" } });
    const before = await finish(client, "again");
    for (const _ of range(2)) {
      equal(await client.restartOrchestration("again"), "again", "the id (R2.70)");
      equal(output(await finish(client, "again")), { a: 1 }, "the original input");
    }
    const state = await client.getOrchestrationState("again");
    assert(state.createdAt >= before.createdAt, "created anew");
    const [, started] = await checkHistory(hub, client, "again");
    equal(started.tags, { t: "1" }, "tags (R2.70)");

    const other = await client.restartOrchestration("again", true);
    assert.match(other, /^[0-9a-f]{32}$/, "the new id (R2.70)");
    equal(output(await finish(client, other)), { a: 1 }, "the original input");

    await client.scheduleNewOrchestration(works, "fail", "failed");
    await finish(client, "failed", Status.FAILED);
    await client.restartOrchestration("failed");
    await finish(client, "failed", Status.FAILED);

    await client.scheduleNewOrchestration(waits, undefined, "waits");
    await hasStatus(client, "waits", Status.RUNNING);
    await assert.rejects(client.restartOrchestration("waits"), /cannot be restarted/);
    const twin = await client.restartOrchestration("waits", true);
    await hasStatus(client, twin, Status.RUNNING);
    equal((await client.getOrchestrationState("waits")).runtimeStatus, Status.RUNNING, "the original (R2.69)");
    await client.suspendOrchestration("waits");
    await hasStatus(client, "waits", Status.SUSPENDED);
    await assert.rejects(client.restartOrchestration("waits"), /cannot be restarted/);
    await client.terminateOrchestration("waits", null);
    await finish(client, "waits", Status.TERMINATED);
    await client.restartOrchestration("waits");
    await hasStatus(client, "waits", Status.RUNNING);
    await assert.rejects(client.restartOrchestration("nobody"), /not found/);
  });
};
