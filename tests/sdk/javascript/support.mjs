// What the SDK programs share: a hub to talk to, waiting, worker processes, and history checks.
//
// A `Hub` is one task hub of the server under test. It makes clients and workers of the real SDK; the
// package for the managed service is not on npm, so the `taskhub` header comes through the base
// package's metadata option (R1.8). A program calls the SDK itself, this module only saves it the set-up.
//
// When the variable DURAHUB_TEST_TOKEN holds a token, everything goes over TLS and carries it.
//
// The SDK is looked up from the working directory, which is where tests/sdk.rs installed it.
//
// `hub.reference` is true when the server is the Python SDK's in-memory one, which is useful to tell a
// wrong program from a wrong server. What only Durahub promises is then left unchecked.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const require = createRequire(join(process.cwd(), "package.json"));
const grpc = require("@grpc/grpc-js");
export const sdk = require("@microsoft/durabletask-js");
const { GrpcClient } = require("@microsoft/durabletask-js/dist/client/client-grpc.js");
export const pb = require("@microsoft/durabletask-js/dist/proto/orchestrator_service_pb.js");
export const { OrchestrationStatus: Status } = sdk;
export const codes = grpc.status;

// Seconds. Enough for a debug build on a busy machine; nothing below waits this long when all is well.
export const PATIENCE = 60;

const token = process.env.DURAHUB_TEST_TOKEN;

const quiet = () => {};
const logger = { error: console.error, warn: console.error, info: quiet, debug: quiet };

/** One task hub of the server under test. */
export class Hub {
  constructor(endpoint, name, reference) {
    Object.assign(this, { endpoint, name, reference });
  }

  #options(name = this.name) {
    const metadataGenerator = async () => {
      const metadata = new grpc.Metadata();
      metadata.set("taskhub", name);
      if (token) metadata.set("authorization", `Bearer ${token}`);
      return metadata;
    };
    return { hostAddress: this.endpoint, useTLS: Boolean(token), metadataGenerator, logger };
  }

  client(name) {
    return new sdk.TaskHubGrpcClient(this.#options(name));
  }

  /** Runs `body` while a worker runs; stops the worker afterwards, whatever happened. */
  async withWorker({ orchestrators = [], activities = [], entities = [] }, body) {
    const worker = new sdk.TaskHubGrpcWorker({ ...this.#options(), shutdownTimeoutMs: 2000 });
    orchestrators.forEach((each) => worker.addOrchestrator(each));
    activities.forEach((each) => worker.addActivity(each));
    entities.forEach(([name, factory]) => worker.addNamedEntity(name, factory));
    await worker.start();
    try {
      return await body(worker);
    } finally {
      await worker.stop();
    }
  }

  /** A call of the bare service, for what the client does not show. */
  async call(method, request) {
    const stub = new GrpcClient(this.endpoint, {}, Boolean(token)).stub;
    const metadata = await this.#options().metadataGenerator();
    try {
      return await new Promise((resolve, reject) =>
        stub[method](request, metadata, (error, answer) => (error ? reject(error) : resolve(answer))));
    } finally {
      stub.close();
    }
  }

  /** The history as it is on the wire. */
  async history(instance) {
    const request = new pb.StreamInstanceHistoryRequest();
    request.setInstanceid(instance);
    const stub = new GrpcClient(this.endpoint, {}, Boolean(token)).stub;
    const metadata = await this.#options().metadataGenerator();
    const events = [];
    for await (const chunk of stub.streamInstanceHistory(request, metadata)) events.push(...chunk.getEventsList());
    stub.close();
    return events;
  }

  /** What a worker stream of `name` ends with when it must be refused. */
  async workerRefusal(name) {
    const stub = new GrpcClient(this.endpoint, {}, Boolean(token)).stub;
    const metadata = await this.#options(name).metadataGenerator();
    try {
      return await new Promise((resolve, reject) => {
        const stream = stub.getWorkItems(new pb.GetWorkItemsRequest(), metadata);
        stream.on("data", (item) => reject(new Error(`the stream gave ${item}`)));
        stream.on("end", () => reject(new Error("the stream ended without an error (R1.40)")));
        stream.on("error", resolve);
      });
    } finally {
      stub.close();
    }
  }

  workerProcess(program, role) {
    return new WorkerProcess(this, program, role);
  }
}

/** A child that runs a worker and tells on its standard output what it is doing. */
export class WorkerProcess {
  lines = [];
  #news = [];

  constructor(hub, program, role) {
    this.role = role;
    const script = fileURLToPath(new URL("programs.mjs", import.meta.url));
    this.process = spawn(
      process.execPath,
      [script, program, "--endpoint", hub.endpoint, "--task-hub", hub.name, "--worker", role],
      { stdio: ["pipe", "pipe", "inherit"] },
    );
    createInterface({ input: this.process.stdout }).on("line", (line) => {
      this.lines.push(line);
      this.#news.splice(0).forEach((wake) => wake());
    });
  }

  async waitFor(line) {
    const late = AbortSignal.timeout(PATIENCE * 1000);
    while (!this.lines.includes(line)) {
      assert(!late.aborted, `worker ${this.role} never said "${line}"; it said ${this.lines}`);
      await Promise.race([new Promise((wake) => this.#news.push(wake)), sleep(500)]);
    }
  }

  /** SIGKILL: no goodbye to the server. */
  async kill() {
    const gone = new Promise((resolve) => this.process.once("exit", resolve));
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill("SIGKILL");
      await gone;
    }
  }
}

/** Polls `probe` until it gives something true. Only for what the SDK has no waiting call for. */
export async function until(what, probe, patience = PATIENCE) {
  const deadline = Date.now() + patience * 1000;
  for (;;) {
    const found = await probe();
    if (found) return found;
    assert(Date.now() < deadline, `not within ${patience} s: ${what}`);
    await sleep(20);
  }
}

export function hasStatus(client, instance, status) {
  return until(`${instance} is ${Status[status]}`, async () =>
    (await client.getOrchestrationState(instance)).runtimeStatus === status);
}

/** Waits for the end of an instance and checks the status that it ended with. */
export async function finish(client, instance, status = Status.COMPLETED) {
  const state = await client.waitForOrchestrationCompletion(instance, true, PATIENCE);
  assert(state, `${instance} does not exist`);
  assert.equal(Status[state.runtimeStatus], Status[status],
    `${instance} ended ${Status[state.runtimeStatus]}, expected ${Status[status]}: output ${state.serializedOutput}, ` +
    `${state.failureDetails?.errorType} ${state.failureDetails?.message}`);
  if (status !== Status.FAILED) assert(!state.failureDetails, `${instance} is not failed and has failure details (R2.27)`);
  return state;
}

export function output(state) {
  return state.serializedOutput === undefined ? undefined : JSON.parse(state.serializedOutput);
}

export function equal(actual, expected, what) {
  // The message of its own would replace the difference that node prints.
  try {
    assert.deepStrictEqual(actual, expected);
  } catch (difference) {
    difference.message = `${what}: ${difference.message}`;
    throw difference;
  }
}

/** The call must be refused with this code and a message that holds all parts. */
export async function refused(code, call, ...parts) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    equal(codes[error.code], codes[code], `code of "${error.message}"`);
    parts.forEach((part) => assert(error.details.includes(part), `"${error.details}" does not hold "${part}"`));
    return;
  }
  assert.fail(`expected ${codes[code]}, but the call was answered: ${answer}`);
}

export const shape = (events) => events.map((event) => event.type);
export const only = (events, type) => events.filter((event) => event.type === type);

/**
 * Reads the history of a terminal instance, checks the rules that hold for every one, and returns it.
 *
 * R4.1 begin and end, R4.2 no orchestratorCompleted, R4.3 event ids, R4.46 timers not early, and
 * invariant S5: one terminal event per scheduled task, no result without a task. R4.4, ids of a
 * JavaScript run strictly increase, where no retry reuses one.
 */
export async function checkHistory(hub, client, instance, { retries = false } = {}) {
  const events = await client.getOrchestrationHistory(instance);
  if (hub.reference) return events.filter((event) => event.type !== "OrchestratorCompleted");

  const names = shape(events);
  equal(names.slice(0, 2), ["OrchestratorStarted", "ExecutionStarted"], `${instance} begins (R4.1)`);
  equal(names.at(-1), "ExecutionCompleted", `${instance} ends (R4.1)`);
  for (const once of ["ExecutionStarted", "ExecutionCompleted"]) {
    equal(names.filter((name) => name === once).length, 1, `number of ${once} (R4.1)`);
  }
  assert(!names.includes("OrchestratorCompleted"), `${names} (R4.2)`);

  const started = events[1];
  equal(started.eventId, 0, "event id of executionStarted (R4.3)");
  equal(started.orchestrationInstance.instanceId, instance, "executionStarted (R4.7)");
  assert.match(started.orchestrationInstance.executionId, /^[0-9a-f]{32}$/, "execution id (R2.12)");
  const ids = events.map((event) => event.eventId).filter((id) => id >= 0);
  if (!retries) assert(ids.every((id, at) => at === 0 || id > ids[at - 1]), `event ids ${ids} (R4.4)`);

  let clock = 0;
  const openTasks = new Set();
  const timers = new Map();
  for (const event of events) {
    assert(event.timestamp?.getTime() > 0, `no timestamp: ${event.type} (R4.6)`);
    switch (event.type) {
      case "OrchestratorStarted":
        assert(event.timestamp.getTime() >= clock, `turn at ${event.timestamp.toISOString()} (R3.27)`);
        clock = event.timestamp.getTime();
        break;
      case "TaskScheduled":
        assert(event.eventId >= 0 && !openTasks.has(event.eventId), `task ${event.eventId} (R4.3)`);
        openTasks.add(event.eventId);
        break;
      case "TaskCompleted":
      case "TaskFailed":
        assert(openTasks.delete(event.taskScheduledId), `a second result, or one without a task: ${event.taskScheduledId} (S5)`);
        break;
      case "TimerCreated":
        timers.set(event.eventId, event.fireAt.getTime());
        break;
      case "TimerFired": {
        const due = timers.get(event.timerId);
        assert(timers.delete(event.timerId), `timer ${event.timerId} fired twice or was never set (S6)`);
        equal(event.fireAt.getTime(), due, "fireAt (R4.6)");
        assert(clock >= due, `due ${due}, fired in the turn at ${clock} (R4.46)`);
        break;
      }
    }
    if (/^(OrchestratorStarted|Task(Completed|Failed)|TimerFired|EventRaised|Execution(Suspended|Resumed|Terminated))$/
      .test(event.type)) equal(event.eventId, -1, `event id of ${event.type} (R4.3)`);
  }
  if (events.at(-1).orchestrationStatus.includes("COMPLETED")) equal([...openTasks], [], "tasks without a result (S5)");
  return events;
}
