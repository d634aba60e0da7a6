//! Group commit: one queue and one thread write the logs of all groups of a node.
//!
//! Whoever writes to a log hands in a [`Job`] and goes on. The thread takes everything that is queued, up
//! to a byte budget, packs the entries of each group into records, applies one batch, syncs once and calls
//! the completions in order. While it syncs, the next batch collects; there is no timer.
//!
//! Whoever hands in a job wakes the thread, which takes the core from it: on a busy machine it would sync for one where
//! a moment later there are four. So, while more than one writes at a time, it lets those run first that are ready.
//! On a free core that costs nothing. Where programs that never wait share all cores it costs the time that they hold
//! them: that is the price for almost half of all syncs on a busy cluster.
//!
//! The queue is first in, first out across votes, appends and truncations: Raft's safety rests on that.
//! Deleting purged records is bounded per round, so that a purge never shows in commit latency.
//!
//! The first error ends everything: every waiting and later job fails, and the [`FaultHook`] runs (which
//! leaves the process by default). After a failed sync the kernel may have dropped the pages, so trying
//! again would acknowledge data that is not on disk. A round that takes longer than [`STUCK_AFTER`] is a
//! fault too: sled has open reports about deadlocks, and a silent node is worse than a restarted one.
//!
//! An engine that keeps nothing has nothing to sync: jobs then run on the caller's thread, in order.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::log::LogIndex;
use super::record::{LogEntry, Position};
use super::writer::Writer;
use super::{Engine, FaultHook, WriteBatch, keys};
use crate::metrics;

/// Bytes of log entries that one round takes at most.
const ROUND_BYTES: usize = 1 << 20;
/// A round that takes longer is a fault.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Called once with the outcome of a job, on the flusher's thread: it must hand over and return.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One write to the log space.
pub(crate) enum Job {
    /// Store consecutive entries of a group; done when they are durable.
    Append { log: Arc<LogIndex>, epoch: u64, entries: Vec<LogEntry>, done: Done },
    /// Put or delete one pointer; done when it is durable.
    Put { key: Vec<u8>, value: Option<Vec<u8>>, done: Done },
    /// Remove the entries after an index.
    Truncate { log: Arc<LogIndex>, after: Option<u64> },
    /// Remember the purge position and delete the records below it little by little.
    Purge { log: Arc<LogIndex>, upto: Position },
    /// Make everything written so far durable, in every space.
    Sync { done: Done },
}

impl Job {
    fn weight(&self) -> usize {
        match self {
            Job::Append { entries, .. } => entries.iter().map(LogEntry::weight).sum(),
            _ => 64,
        }
    }
}

/// Handle to the flusher of a node.
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Told when nothing more will come.
    closing: Condvar,
    /// What the rounds keep between them; taken by whoever runs a round.
    round: Mutex<Round>,
    poisoned: AtomicBool,
    /// Start of the running round in milliseconds since `born`, plus one; 0 while idle.
    busy_since: AtomicU64,
    born: Instant,
    fault: FaultHook,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Pointers that may wait for the next round, whenever it comes: only the newest counts.
    lazy: BTreeMap<Vec<u8>, Vec<u8>>,
    closed: bool,
}

#[derive(Default)]
struct Round {
    /// Keys below purge positions that are still to be deleted.
    deletions: VecDeque<Vec<u8>>,
}

impl Flusher {
    /// Starts the flusher over `engine`.
    pub(crate) fn start(engine: Arc<dyn Engine>, fault: FaultHook) -> io::Result<Self> {
        Self::start_with(engine, fault, STUCK_AFTER)
    }

    fn start_with(
        engine: Arc<dyn Engine>,
        fault: FaultHook,
        stuck_after: Duration,
    ) -> io::Result<Self> {
        let volatile = engine.volatile();
        let shared = Arc::new(Shared {
            engine,
            queue: Mutex::default(),
            wake: Condvar::new(),
            closing: Condvar::new(),
            round: Mutex::default(),
            poisoned: AtomicBool::new(false),
            busy_since: AtomicU64::new(0),
            born: Instant::now(),
            fault,
        });
        let mut threads = Vec::new();
        if !volatile {
            let flusher = Arc::clone(&shared);
            threads.push(
                std::thread::Builder::new().name("flusher".into()).spawn(move || flusher.run())?,
            );
            let watchdog = Arc::clone(&shared);
            threads.push(
                std::thread::Builder::new()
                    .name("flusher-watch".into())
                    .spawn(move || watchdog.watch(stuck_after))?,
            );
        }
        Ok(Self { shared, threads: Mutex::new(threads) })
    }

    /// Queues a job. Its completion always runs, with an error once the flusher is closed or poisoned.
    pub(crate) fn submit(&self, job: Job) {
        let shared = &self.shared;
        if shared.engine.volatile() {
            // The round's lock keeps the order: it is taken before the job can be overtaken.
            let mut round = shared.round.lock();
            if shared.poisoned.load(Ordering::Acquire) || shared.queue.lock().closed {
                drop(round);
                return fail(vec![job], "the log is closed");
            }
            let dones = shared.write(&mut round, vec![job], WriteBatch::new());
            drop(round);
            return complete(dones);
        }
        let mut queue = shared.queue.lock();
        if queue.closed || shared.poisoned.load(Ordering::Acquire) {
            drop(queue);
            return fail(vec![job], "the log is closed");
        }
        let wake = queue.jobs.is_empty();
        queue.jobs.push_back(job);
        drop(queue);
        if wake {
            shared.wake.notify_one();
        }
    }

    /// Leaves a pointer to be written with whatever is written next.
    pub(crate) fn put_lazily(&self, key: Vec<u8>, value: Vec<u8>) {
        if !self.shared.engine.volatile() {
            self.shared.queue.lock().lazy.insert(key, value);
        }
    }

    /// Queues keys to be deleted little by little, as after a purge.
    pub(crate) fn delete_lazily(&self, keys: Vec<Vec<u8>>) {
        self.shared.round.lock().deletions.extend(keys);
    }

    /// Forgets the deletions that are still queued for a group: whoever begins its log again may use the same keys.
    pub(crate) fn forget_deletions(&self, group: u32) {
        let of_group = |key: &Vec<u8>| {
            matches!(key.first(), Some(&(keys::RECORD | keys::CHUNK)))
                && key.get(1..5) == Some(&group.to_be_bytes()[..])
        };
        self.shared.round.lock().deletions.retain(|key| !of_group(key));
    }

    /// Waits until everything written so far is durable.
    pub(crate) async fn sync(&self) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.submit(Job::Sync { done: Box::new(move |result| drop(sender.send(result))) });
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the flusher is gone")))
    }

    /// Writes and syncs what is queued, then ends the threads. Blocks.
    pub(crate) fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_all();
        self.shared.closing.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                self.shared.fault.report("the flusher thread panicked");
            }
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut had_company = false;
        loop {
            let (jobs, lazy) = {
                let mut queue = self.queue.lock();
                loop {
                    if !queue.jobs.is_empty()
                        || queue.closed
                        || !self.round.lock().deletions.is_empty()
                    {
                        break;
                    }
                    self.wake.wait(&mut queue);
                    if had_company {
                        MutexGuard::unlocked(&mut queue, std::thread::yield_now);
                    }
                }
                metrics::QUEUE_DEPTH.set(queue.jobs.len() as f64);
                if queue.closed && queue.jobs.is_empty() && queue.lazy.is_empty() {
                    break;
                }
                let mut jobs = Vec::with_capacity(queue.jobs.len());
                let mut bytes = 0;
                while bytes < ROUND_BYTES {
                    let Some(job) = queue.jobs.pop_front() else { break };
                    bytes += job.weight();
                    jobs.push(job);
                }
                (jobs, std::mem::take(&mut queue.lazy))
            };
            had_company = jobs.len() > 1;
            let batch = lazy.into_iter().map(|(key, value)| (key, Some(value))).collect();
            let mut round = self.round.lock();
            self.busy_since.store(self.now_millis() + 1, Ordering::Release);
            let dones = self.write(&mut round, jobs, batch);
            self.busy_since.store(0, Ordering::Release);
            drop(round);
            complete(dones);
            if self.poisoned.load(Ordering::Acquire) {
                return;
            }
        }
        if !self.poisoned.load(Ordering::Acquire)
            && let Err(error) = self.engine.sync()
        {
            self.poison(&format!("closing the log: {error}"));
        }
    }

    /// Runs one round and returns the completions to call.
    fn write(
        &self,
        round: &mut Round,
        jobs: Vec<Job>,
        batch: WriteBatch,
    ) -> Vec<(Done, Option<String>)> {
        let mut dones = Vec::with_capacity(jobs.len());
        let result = self.write_jobs(round, jobs, batch, &mut dones);
        let failure = result.err().map(|error| format!("writing the log: {error}"));
        if let Some(message) = &failure {
            self.poison(message);
        }
        dones.into_iter().map(|done| (done, failure.clone())).collect()
    }

    fn write_jobs(
        &self,
        round: &mut Round,
        jobs: Vec<Job>,
        batch: WriteBatch,
        dones: &mut Vec<Done>,
    ) -> io::Result<()> {
        let mut writer = Writer::new(self.engine.as_ref(), batch);
        let mut failed = Ok(());
        for job in jobs {
            // After a failure the jobs are only taken apart for their completions.
            if failed.is_err() {
                dones.extend(into_done(job));
                continue;
            }
            match job {
                Job::Append { log, epoch, entries, done } => {
                    writer.append(log, epoch, entries);
                    dones.push(done);
                }
                Job::Put { key, value, done } => {
                    writer.batch.push((key, value));
                    dones.push(done);
                }
                Job::Truncate { log, after } => failed = writer.truncate(&log, after),
                Job::Purge { log, upto } => {
                    writer
                        .batch
                        .push((keys::pointer(keys::PURGED, log.group()), Some(upto.encode())));
                    // Entries of this very round may lie below the position.
                    failed = writer.flush().map(drop);
                    round.deletions.extend(log.purge_records(upto.index));
                }
                Job::Sync { done } => dones.push(done),
            }
        }
        failed?;
        let sync = !dones.is_empty();
        let quota = (round.deletions.len() / 64).clamp(64, 1024).min(round.deletions.len());
        writer.batch.extend(round.deletions.drain(..quota).map(|key| (key, None)));
        let records = writer.flush()?;
        if sync {
            let started = Instant::now();
            self.engine.sync()?;
            if !self.engine.volatile() {
                metrics::FLUSH_SECONDS.record(started.elapsed().as_secs_f64());
                metrics::FLUSH_RECORDS.record(records.0 as f64);
                metrics::FLUSH_BYTES.record(records.1 as f64);
                metrics::PENDING_DELETIONS.set(round.deletions.len() as f64);
            }
        }
        Ok(())
    }

    fn poison(&self, message: &str) {
        // First of all: whoever waits for a job, or hands one in, would tell the same fault again. Until the
        // hook is done, jobs still queue up.
        self.fault.report(message);
        // One step under the queue's lock: a job in between would never complete.
        let jobs: Vec<Job> = {
            let mut queue = self.queue.lock();
            self.poisoned.store(true, Ordering::Release);
            queue.jobs.drain(..).collect()
        };
        fail(jobs, message);
    }

    fn watch(&self, stuck_after: Duration) {
        let pause = (stuck_after / 4).min(Duration::from_secs(5));
        let mut queue = self.queue.lock();
        while !queue.closed {
            self.closing.wait_for(&mut queue, pause);
            let since = self.busy_since.load(Ordering::Acquire);
            if since != 0 && self.now_millis() + 1 > since + stuck_after.as_millis() as u64 {
                drop(queue);
                self.fault.report(&format!(
                    "a log flush is stuck for more than {} s",
                    stuck_after.as_secs()
                ));
                return;
            }
        }
    }

    fn now_millis(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}

fn into_done(job: Job) -> Option<Done> {
    match job {
        Job::Append { done, .. } | Job::Put { done, .. } | Job::Sync { done } => Some(done),
        Job::Truncate { .. } | Job::Purge { .. } => None,
    }
}

fn complete(dones: Vec<(Done, Option<String>)>) {
    for (done, failure) in dones {
        done(failure.map_or(Ok(()), |message| Err(io::Error::other(message))));
    }
}

fn fail(jobs: Vec<Job>, message: &str) {
    complete(
        jobs.into_iter()
            .filter_map(into_done)
            .map(|done| (done, Some(message.to_owned())))
            .collect(),
    );
}

#[cfg(test)]
mod tests;
