//! Single values on the servers, written and read by clients: what shows a lost write, a stale read, a split brain.
//!
//! A register is an instance that is started again and again under a policy that replaces whatever it finds
//! (R2.16); the input is its value. Each register has some writers, one per server, so that a server which is cut
//! off holds up its own only, and readers that go through all servers in turn. A call that was refused as `UNAVAILABLE` changed nothing (R1.32) and its value must never be seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use durahub_proto::wire::{
    CreateInstanceRequest, GetInstanceRequest, OrchestrationIdReusePolicy, OrchestrationStatus,
};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::Code;

use super::calls::{Gateways, within};
use super::ledger::REGISTER;
use super::linear::{self, Did, Operation};

/// Writers of each register.
const WRITERS: usize = 3;
/// Pause of a writer, and of a reader, after each call.
const PAUSE: Duration = Duration::from_millis(60);
/// Longest time for one call; one that takes longer has an unknown outcome.
const PATIENCE: u64 = 10;

/// What was done to one register.
#[derive(Default)]
pub(crate) struct Register {
    pub(crate) id: String,
    operations: Mutex<Vec<Operation>>,
    /// When a write was acknowledged.
    acknowledged: Mutex<Vec<Instant>>,
}

impl Register {
    /// When the last write was acknowledged.
    pub(crate) fn last_acknowledged(&self) -> Option<Instant> {
        self.acknowledged.lock().last().copied()
    }

    /// The longest time without an acknowledged write between `from` and `to`.
    pub(crate) fn longest_silence(&self, from: Instant, to: Instant) -> Duration {
        let times = self.acknowledged.lock();
        let within = times.iter().copied().filter(|time| from < *time && *time < to);
        let marks: Vec<_> = std::iter::once(from).chain(within).chain([to]).collect();
        marks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

/// Writers and readers at work.
pub(crate) struct Registers {
    pub(crate) all: Vec<Arc<Register>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Registers {
    /// Begins to write and read registers of these ids, with so many readers each.
    pub(crate) fn begin(gateways: &Arc<Gateways>, ids: &[String], readers: usize) -> Self {
        let (stop, clock) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut clients = JoinSet::new();
        let mut all = Vec::new();
        for id in ids {
            let register = Arc::new(Register { id: id.clone(), ..Register::default() });
            let client = |register: &Arc<Register>| At {
                gateways: Arc::clone(gateways),
                register: Arc::clone(register),
                clock: Arc::clone(&clock),
                stop: Arc::clone(&stop),
            };
            for writer in 0..WRITERS {
                clients.spawn(client(&register).write_on(writer));
            }
            for _ in 0..readers {
                clients.spawn(client(&register).read_on());
            }
            all.push(register);
        }
        Registers { all, stop, clients }
    }

    /// Ends the load and says what cannot have happened.
    pub(crate) async fn end(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client of a register");
        }
        let mut found = Vec::new();
        for register in &self.all {
            let operations = register.operations.lock();
            let writes = operations.iter().filter(|it| matches!(it.did, Did::Write(_))).count();
            if writes == 0 || writes == operations.len() {
                found.push(format!("register {}: nothing was written, or read", register.id));
            }
            let wrong = linear::violation(&operations);
            found.extend(wrong.map(|wrong| format!("register {}: {wrong}", register.id)));
        }
        found
    }

    /// Operations that were recorded.
    pub(crate) fn operations(&self) -> usize {
        self.all.iter().map(|register| register.operations.lock().len()).sum()
    }
}

/// A client of one register.
struct At {
    gateways: Arc<Gateways>,
    register: Arc<Register>,
    clock: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl At {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, begin: u64, end: Option<u64>, did: Did, through: u64) {
        self.register.operations.lock().push(Operation { begin, end, did, through });
    }

    async fn write_on(self, writer: usize) {
        // No value is written twice.
        let mut value = writer as u64 + 1;
        while !self.stop.load(Ordering::SeqCst) {
            let request = CreateInstanceRequest {
                instance_id: self.register.id.clone(),
                name: REGISTER.to_owned(),
                input: Some(value.to_string().into()),
                orchestration_id_reuse_policy: Some(replace_anything()),
                ..Default::default()
            };
            let (through, mut client) = self.gateways.at(writer);
            let begin = self.now();
            match client.start_instance(within(PATIENCE, request)).await {
                Ok(_) => {
                    self.note(begin, Some(self.now()), Did::Write(value), through);
                    self.register.acknowledged.lock().push(Instant::now());
                }
                // Nothing was done, says the contract: whoever reads this value proves it wrong.
                Err(status) if status.code() == Code::Unavailable && !broke(&status) => {}
                Err(_) => self.note(begin, None, Did::Write(value), through),
            }
            value += WRITERS as u64;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn read_on(self) {
        while !self.stop.load(Ordering::SeqCst) {
            let request = GetInstanceRequest {
                instance_id: self.register.id.clone(),
                get_inputs_and_outputs: true,
            };
            let (through, mut client) = self.gateways.next();
            let begin = self.now();
            if let Ok(answer) = client.get_instance(within(PATIENCE, request)).await {
                let state = answer.into_inner().orchestration_state;
                let value = state.and_then(|state| state.input?.as_str().parse().ok());
                self.note(begin, Some(self.now()), Did::Read(value.unwrap_or(0)), through);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether a status was made on this side, from a connection that broke: the server may have done anything.
/// One that refused the connection has done nothing.
fn broke(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    let broken = cause.is_some();
    while let Some(inner) = cause {
        let io = inner.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            return false;
        }
        cause = inner.source();
    }
    broken
}

fn replace_anything() -> OrchestrationIdReusePolicy {
    use OrchestrationStatus::{
        Canceled, Completed, Failed, Pending, Running, Suspended, Terminated,
    };
    let all = [Pending, Running, Suspended, Completed, Failed, Canceled, Terminated];
    OrchestrationIdReusePolicy {
        replaceable_status: all.map(i32::from).to_vec(),
        ..Default::default()
    }
}
