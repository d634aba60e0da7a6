//! The courier of a partition: carries messages from its outbox to the partitions of their receivers.
//!
//! It runs where the partition is led and knows nothing that the rows do not: it starts at the head of the
//! outbox, and a leader that follows starts there again. Each receiving partition has a *lane* of its own
//! ([`lanes`]): one delivery at a time, in the order of the outbox, the next one only after an answer. So
//! the receiver can tell by one place what came before (S7), and a lane that stands still holds up no other.
//! What was delivered leaves the outbox by a command of its own, many messages at once.
//!
//! A place is read from the outbox once; only places are kept in memory, the messages are read when they are
//! sent. Stopping at any point loses nothing: what was delivered twice is dropped there, what was truncated
//! twice is gone already.

mod lanes;

use std::sync::Arc;
use std::time::Duration;

use durahub_cluster::{Error, GroupId, placement};
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use self::lanes::Lanes;
use super::Dispatcher;
use crate::engine::command::{Deliver, Delivery, TruncateOutbox};
use crate::engine::state::Place;
use crate::engine::{Command, read};
use crate::machine::{Partition, RowsView};

/// How many places one look at the outbox reads: the partition applies nothing meanwhile.
const LOOK: usize = 1024;
/// How many messages share a delivery.
const BATCH_MESSAGES: usize = 256;
/// Their size in bytes; a larger message travels alone.
const BATCH_BYTES: usize = 1 << 20;
/// How many delivered messages leave the outbox by one command.
const TRUNCATE: usize = 4096;
/// Pause after the first failure in a row; doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LAST: Duration = Duration::from_millis(500);

/// The courier of one partition; it stops when this is dropped.
pub(super) struct Courier {
    wake: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Courier {
    /// Begins at the head of the outbox of `home`.
    pub(super) fn start(dispatcher: Dispatcher, home: Partition) -> Courier {
        let wake = Arc::new(Notify::new());
        let round = Round {
            dispatcher,
            home,
            wake: Arc::clone(&wake),
            lanes: Lanes::default(),
            under_way: FuturesUnordered::new(),
        };
        Courier { wake, task: tokio::spawn(round.run()) }
    }

    /// Something new is in the outbox.
    pub(super) fn poke(&self) {
        self.wake.notify_one();
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What has come to its end.
enum Done {
    Delivered { to: GroupId, outcome: Result<(), Error> },
    Truncated { places: Vec<Place>, outcome: Result<(), Error> },
}

struct Round {
    dispatcher: Dispatcher,
    home: Partition,
    wake: Arc<Notify>,
    lanes: Lanes,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Round {
    async fn run(mut self) {
        loop {
            self.look();
            self.deliver();
            self.truncate();
            tokio::select! {
                () = self.wake.notified() => {}
                Some(done) = self.under_way.next() => self.settle(done),
            }
        }
    }

    /// Reads what is new in the outbox: the next so many places, and the rest in the rounds that follow.
    fn look(&mut self) {
        let partitions = self.dispatcher.0.partitions.len() as u32;
        let after = self.lanes.last_read();
        let new = self.home.peek(|rows| read::outbox_after(&RowsView(rows), after, LOOK));
        if new.len() == LOOK {
            self.wake.notify_one();
        }
        for (place, to) in new {
            self.lanes.push(placement::partition_of(to.hub, &to.instance, partitions), place);
        }
    }

    /// Sends the next batch on every lane that stands still.
    fn deliver(&mut self) {
        for to in self.lanes.idle() {
            let places = self.lanes.first(to, BATCH_MESSAGES);
            let (taken, messages) = self.home.peek(|rows| load(rows, &places));
            if messages.is_empty() {
                // Delivered under an earlier leader, and truncated just now.
                self.lanes.skip(to, taken);
                self.wake.notify_one();
                continue;
            }
            let pause = self.lanes.begin(to, taken);
            let partition = self.dispatcher.0.partitions[to.0 as usize - 1].clone();
            let command = Command::Deliver(Deliver { from: self.home.id().0, messages });
            let outcome = propose(partition, command, pause);
            self.under_way
                .push(outcome.map(move |outcome| Done::Delivered { to, outcome }).boxed());
        }
    }

    /// Forgets what was delivered, unless that is under way already.
    fn truncate(&mut self) {
        let (places, pause) = self.lanes.take_delivered(TRUNCATE);
        if places.is_empty() {
            return;
        }
        let command = TruncateOutbox::new(places.iter().copied());
        let outcome = propose(self.home.clone(), Command::TruncateOutbox(command), pause);
        let done = outcome.map(move |outcome| Done::Truncated { places, outcome });
        self.under_way.push(done.boxed());
    }

    fn settle(&mut self, done: Done) {
        let from = self.home.id();
        match done {
            Done::Delivered { to, outcome: Ok(()) } => self.lanes.delivered(to),
            Done::Delivered { to, outcome: Err(error @ Error::TooLarge { .. }) } => {
                // Only a limit that was lowered since it was accepted makes one so. It must not hold up the rest.
                tracing::error!(%from, %to, %error, "a message cannot be delivered and is dropped");
                self.lanes.delivered(to);
            }
            Done::Delivered { to, outcome: Err(error) } => {
                tracing::debug!(%from, %to, %error, "messages wait");
                self.lanes.failed(to);
            }
            Done::Truncated { outcome: Ok(()), .. } => self.lanes.truncated(),
            Done::Truncated { places, outcome: Err(error) } => {
                tracing::debug!(%from, %error, "the outbox stays as it is");
                self.lanes.not_truncated(places);
            }
        }
    }
}

/// Reads messages from the outbox, as many as fit into a delivery, and says how many places that took.
fn load(rows: &dyn durahub_cluster::Rows, places: &[Place]) -> (usize, Vec<Delivery>) {
    let (mut taken, mut bytes, mut messages) = (0, 0, Vec::new());
    for place in places {
        if let Some(message) = read::message(&RowsView(rows), *place) {
            bytes += message.len();
            if !messages.is_empty() && bytes > BATCH_BYTES {
                break;
            }
            messages.push(Delivery::new(*place, message));
        }
        taken += 1;
    }
    (taken, messages)
}

/// Proposes after a pause. An answer of the engine is always a yes: messages are never refused.
async fn propose(partition: Partition, command: Command, pause: Duration) -> Result<(), Error> {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    partition.propose(command.into_bytes()).await.map(drop)
}

fn pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => PAUSE_FIRST.saturating_mul(1 << (n - 1).min(16)).min(PAUSE_LAST),
    }
}
