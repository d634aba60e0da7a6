// Programs about entities: operations, failures, locks, delayed signals, what entities start.
//
// Part of programs.mjs, which says how they are run.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

import { Status, codes, equal, finish, output, refused, sdk, until } from "./support.mjs";

const { EntityInstanceId, TaskEntity, whenAll } = sdk;
const range = (count) => Array.from({ length: count }, (_, at) => at);
const id = (name, key) => new EntityInstanceId(name, key);

// A class-based entity.
class Account extends TaskEntity {
  initializeState() {
    return { balance: 0 };
  }
  add(amount) {
    this.state.balance += amount;
    return this.state.balance;
  }
  get() {
    return this.state.balance;
  }
  spoil(amount) {
    this.state.balance += amount;
    this.context.signalEntity(id("account", "victim"), "add", 1000);
    throw new Error("spoiled on purpose");
  }
}

// An entity that is one function of its operations.
const log = {
  run(operation) {
    const seen = operation.state.getState() ?? [];
    switch (operation.name.toLowerCase()) {
      case "get":
        return seen;
      case "start":
        return operation.context.scheduleNewOrchestration("child", operation.getInput(), { instanceId: "started-by-entity" });
      case "reset":
        return operation.state.setState(null);
      case "tick":
        return operation.state.setState([...seen, [operation.getInput(), Date.now()]]);
      default:
        return operation.state.setState([...seen, operation.getInput()]);
    }
  },
};

const named = [["account", () => new Account()], ["log", () => log]];
const balance = async (client, key) => (await client.getEntity(id("account", key)))?.state?.balance;

export const entities = {};

/** Signals and calls in order, both kinds of entities, deletion and a new life (R5.7, R5.10 to R5.22). */
entities.entity_operations = async (hub) => {
  const mixed = async function* mixed(ctx, count) {
    for (let n = 0; n < count; n++) ctx.entities.signalEntity(id("account", "mixed"), "add", 2);
    return yield ctx.entities.callEntity(id("account", "mixed"), "get");
  };
  const unknown = async function* unknown(ctx) {
    yield ctx.entities.callEntity(id("nobody", "1"), "get");
  };
  const client = hub.client();
  await hub.withWorker({ orchestrators: [mixed, unknown], entities: named }, async () => {
    equal(await client.getEntity(id("log", "none")), undefined, "an unknown entity (R2.100)");
    for (const n of range(150)) await client.signalEntity(id("log", "a"), "append", n);
    const seen = await until("all ran", async () => {
      const { state } = (await client.getEntity(id("log", "a"))) ?? {};
      return state?.length === 150 && state;
    });
    equal(seen, range(150), "signals of one client, in order (R5.12)");
    equal(output(await finish(client, await client.scheduleNewOrchestration(mixed, 20))), 40, "a call sees the signals before it");
    const failed = await finish(client, await client.scheduleNewOrchestration(unknown), Status.FAILED);
    assert.match(failed.failureDetails.message, /nobody/, "an entity nobody knows (R5.22)");
    await client.signalEntity(id("account", "mixed"), "delete");
    await until("it is gone", async () => (await client.getEntity(id("account", "mixed"))) === undefined);
    equal(output(await finish(client, await client.scheduleNewOrchestration(mixed, 1))), 2, "a new life (R5.10)");
    await refused(codes.INVALID_ARGUMENT, () => client.signalEntity(id("log", "k".repeat(120)), "append", 1), "length");
  });
};

/** A failed operation changes nothing and sends nothing; others of its batch count (R5.18 to R5.20, R3.74). */
entities.entity_failures = async (hub) => {
  const spoils = async function* spoils(ctx) {
    const account = id("account", "1");
    const calls = ["add", "spoil", "add"].map((name) => ctx.entities.callEntity(account, name, 1));
    const said = [];
    for (const call of calls) {
      try {
        said.push(yield call);
      } catch (error) {
        said.push(String(error.message));
      }
    }
    return said;
  };
  const client = hub.client();
  await hub.withWorker({ orchestrators: [spoils], entities: named }, async () => {
    const [first, second, third] = output(await finish(client, await client.scheduleNewOrchestration(spoils)));
    equal([first, third], [1, 2], "the others ran, on the state before");
    assert.match(second, /spoiled on purpose/);
    equal(await client.getEntity(id("account", "victim")), undefined, "what a failed operation sent is dropped");
  });
};

/** Transfers between locked accounts, holders that end without giving back, who holds a lock (R5.27 to R5.39). */
entities.entity_locks = async (hub) => {
  const [a, b] = [id("account", "a"), id("account", "b")];
  const transfer = async function* transfer(ctx, amount) {
    const lock = yield ctx.entities.lockEntities(b, a);
    const before = yield ctx.entities.callEntity(a, "get");
    yield ctx.createTimer(0.005);
    yield ctx.entities.callEntity(a, "add", -amount);
    yield ctx.entities.callEntity(b, "add", amount);
    const after = yield ctx.entities.callEntity(a, "get");
    lock.release();
    return [before, after];
  };
  const forgets = async function* forgets(ctx) {
    yield ctx.entities.lockEntities(a, b);
    yield ctx.entities.callEntity(a, "get");
  };
  const breaks = async function* breaks(ctx) {
    yield ctx.entities.lockEntities(a, b);
    throw new Error("inside");
  };
  const holds = async function* holds(ctx) {
    yield ctx.entities.lockEntities(a, b);
    yield ctx.waitForExternalEvent("go");
  };
  const client = hub.client();
  await hub.withWorker({ orchestrators: [transfer, forgets, breaks, holds], entities: named }, async () => {
    await client.signalEntity(a, "add", 100);
    const transfers = [];
    for (const n of range(8)) transfers.push(await client.scheduleNewOrchestration(transfer, n + 1));
    for (const [n, instance] of transfers.entries()) {
      const [before, after] = output(await finish(client, instance));
      equal(after, before - n - 1, "nobody else in between (S10)");
    }
    equal([await balance(client, "a"), await balance(client, "b")], [64, 36], "all transfers");
    // This SDK gives nothing back at the end of an orchestrator: the server does (R5.31).
    await finish(client, await client.scheduleNewOrchestration(forgets));
    const broken = await client.scheduleNewOrchestration(breaks);
    await finish(client, broken, Status.FAILED);
    await assert.rejects(client.rewindInstance(broken, "why not"), "it has lost its locks (R2.65)");

    const holder = await client.scheduleNewOrchestration(holds);
    await until("it holds both (R5.37)", async () =>
      (await client.getEntity(a)).lockedBy === holder && (await client.getEntity(b)).lockedBy === holder);
    const waiting = await client.scheduleNewOrchestration(transfer, 1);
    await sleep(200);
    await client.terminateOrchestration(holder, null);
    await finish(client, holder, Status.TERMINATED);
    equal(output(await finish(client, waiting)), [64, 63], "the lock went with its holder");
    await until("no lock is left", async () =>
      !(await client.getEntity(a)).lockedBy && !(await client.getEntity(b)).lockedBy);
  });
};

/** Signals for later, by a client and an orchestration: not early, in order, and soon (R5.16, R7.3). */
entities.entity_delays = async (hub) => {
  const later = async function later(ctx, at) {
    ctx.entities.signalEntity(id("log", "clock"), "tick", at, { signalTime: new Date(at) });
  };
  const client = hub.client();
  await hub.withWorker({ orchestrators: [later], entities: named }, async () => {
    const now = Date.now();
    const due = [now + 1500, now + 1000, now + 2000];
    for (const at of due.slice(0, 2)) await client.signalEntity(id("log", "clock"), "tick", at, { signalTime: new Date(at) });
    await finish(client, await client.scheduleNewOrchestration(later, due[2]));
    const ticks = await until("all came", async () => {
      const { state } = (await client.getEntity(id("log", "clock"))) ?? {};
      return state?.length === 3 && state;
    });
    equal(ticks.map(([wanted]) => wanted), due.toSorted(), "in the order of their times");
    for (const [wanted, came] of ticks) assert(came >= wanted - 5, `early by ${wanted - came} ms`);
    // A signal for now takes the same way on the same machine; only what comes on top of that is the delay's.
    for (let sent = 1; sent <= 3; sent += 1) {
      await client.signalEntity(id("log", "now"), "tick", Date.now());
      await until("it came", async () => (await client.getEntity(id("log", "now")))?.state?.length === sent);
    }
    const times = (entries) => entries.map(([wanted, came]) => came - wanted);
    const usual = Math.max(...times((await client.getEntity(id("log", "now"))).state));
    const late = Math.min(...times(ticks));
    assert(late < 100 + usual, `late by ${late} ms, and a signal for now takes ${usual} ms (R7.3)`);
  });
};

/** What entities start (R5.24, R5.25), many orchestrations at one entity, pages of entities (R2.102, R5.36). */
entities.entity_actions = async (hub) => {
  const child = async function* child(ctx, value) {
    yield ctx.waitForExternalEvent("go");
    return value;
  };
  const caller = async function* caller(ctx, value) {
    return yield ctx.entities.callEntity(id("log", "1"), "start", value);
  };
  const crowd = async function* crowd(ctx, key) {
    yield whenAll(range(5).map((n) => ctx.entities.callEntity(id("account", `${key}${n}`), "add", 1)));
  };
  const client = hub.client();
  await hub.withWorker({ orchestrators: [child, caller, crowd], entities: named }, async () => {
    await finish(client, await client.scheduleNewOrchestration(caller, "first"));
    await until("it runs", () => client.getOrchestrationState("started-by-entity"));
    await finish(client, await client.scheduleNewOrchestration(caller, "second"));
    await client.raiseOrchestrationEvent("started-by-entity", "go");
    equal(output(await finish(client, "started-by-entity")), "first", "one that runs is left alone (R5.25)");

    const all = [];
    for (const n of range(10)) all.push(await client.scheduleNewOrchestration(crowd, n % 2 ? "x" : "y"));
    for (const instance of all) await finish(client, instance);
    const found = [];
    for await (const each of client.getEntities({ instanceIdStartsWith: "@account@", includeState: true, pageSize: 3 })) {
      found.push([each.id.toString(), each.state.balance]);
    }
    equal(found, [..."xy"].flatMap((key) => range(5).map((n) => [`@account@${key}${n}`, 5])), "pages in the order of ids");
    const cleaned = await client.cleanEntityStorage();
    equal([cleaned.emptyEntitiesRemoved, cleaned.orphanedLocksReleased], [0, 0], "R2.103");
  });
};
