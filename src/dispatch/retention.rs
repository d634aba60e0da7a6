//! Retention: ended instances go once they have stayed as long as their task hub keeps them.
//!
//! Each node does it for the partitions that it leads, one after the other, and knows nothing that the rows do
//! not: what was kept how long stands in the metadata group and in the index by time of completion, so a start
//! or another leader goes on where this one was. A pass reads the beginning of that index up to the cut-off and
//! nothing behind it. What goes, goes by small `Purge` commands that carry status and cut-off, so that an
//! instance that began anew meanwhile stays. One command is under way at a time, and a pass rests three times as
//! long as it works, however many hubs and instances there are.
//!
//! As in a purge by filter, an instance goes by its own status and time, whatever is above it, and stays while
//! anything below it still runs. What has ended below it goes by its own status and time, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use durahub_cluster::{Error, GroupId, Leadership};
use durahub_proto::wire::OrchestrationStatus;
use tokio::time::Instant;

use super::Dispatcher;
use crate::engine::command::{Purge, Target};
use crate::engine::read::{self, Known, List, Order, Seen};
use crate::engine::state::{HubRecord, RetentionRecord};
use crate::engine::{Command, Mark, Reply, View, decode_answer};
use crate::machine::{Partition, RowsView};

/// Instances that one command removes, or that one look examines.
const STEP: usize = 32;
/// A pass rests so many times as long as it works.
const REST: u32 = 3;
/// It works at least so long between two rests.
const WORK: Duration = Duration::from_millis(5);
/// Longest rest at a time.
const REST_MAX: Duration = Duration::from_millis(500);
/// Longest time between two passes.
const PASS_MAX: Duration = Duration::from_secs(60);
/// Shortest time between two passes, unless something is said anew.
const PASS_MIN: Duration = Duration::from_secs(1);

/// How long ended instances stay, by the status in which they ended, from their end; `None`: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Those that completed.
    pub completed: Option<Duration>,
    /// Those that failed.
    pub failed: Option<Duration>,
    /// Those that were terminated.
    pub terminated: Option<Duration>,
}

impl Retention {
    /// What holds for a hub, if this holds for hubs that say nothing of their own.
    #[must_use]
    pub fn of(&self, hub: &HubRecord) -> Retention {
        let RetentionRecord { completed, failed, terminated } = hub.retention.unwrap_or_default();
        let or = |own: Option<u64>, usual| match own {
            Some(0) => None,
            Some(milliseconds) => Some(Duration::from_millis(milliseconds)),
            None => usual,
        };
        Retention {
            completed: or(completed, self.completed),
            failed: or(failed, self.failed),
            terminated: or(terminated, self.terminated),
        }
    }

    /// The statuses of instances that go one day, and when.
    fn limited(&self) -> impl Iterator<Item = (OrchestrationStatus, Duration)> {
        let all = [
            (OrchestrationStatus::Completed, self.completed),
            (OrchestrationStatus::Failed, self.failed),
            (OrchestrationStatus::Terminated, self.terminated),
        ];
        all.into_iter().filter_map(|(status, time)| Some((status, time?)))
    }
}

/// What one pass has removed of one hub; told when the pass is through with it, or given up.
pub struct Removed {
    /// The hub's name.
    pub hub: String,
    /// How many instances, by the status in which they had ended; none is 0.
    pub by_status: BTreeMap<&'static str, usize>,
    by_partition: BTreeMap<GroupId, usize>,
    told: Arc<OnceLock<Told>>,
}

/// Hears what was removed.
pub(super) type Told = Box<dyn Fn(&Removed) + Send + Sync>;

impl Removed {
    fn count(&mut self, partition: GroupId, status: OrchestrationStatus, count: usize) {
        if count > 0 {
            *self.by_partition.entry(partition).or_default() += count;
            *self.by_status.entry(word(status)).or_default() += count;
        }
    }
}

impl Drop for Removed {
    /// One line for each hub of which something went: how many instances, and of which partitions.
    fn drop(&mut self) {
        if self.by_status.is_empty() {
            return;
        }
        let parts =
            self.by_partition.iter().map(|(partition, count)| format!("{}: {count}", partition.0));
        let partitions = parts.collect::<Vec<_>>().join(", ");
        let (hub, removed) = (&self.hub, self.by_status.values().sum::<usize>());
        tracing::info!(hub, removed, partitions, "removed by retention");
        if let Some(told) = self.told.get() {
            told(self);
        }
    }
}

/// A status from which instances go, as settings and metrics spell it.
fn word(status: OrchestrationStatus) -> &'static str {
    match status {
        OrchestrationStatus::Completed => "completed",
        OrchestrationStatus::Failed => "failed",
        _ => "terminated",
    }
}

/// What one look at the index found.
struct Found {
    seen: Vec<Seen>,
    reached: Option<Mark>,
}

/// Keeps the share of time that passes take.
struct Turns {
    since: Instant,
}

impl Turns {
    fn begin() -> Turns {
        Turns { since: Instant::now() }
    }

    /// Rests, if there was enough work since the last time.
    async fn rest(&mut self) {
        if let Some(rest) = rest_after(self.since.elapsed()) {
            tokio::time::sleep(rest).await;
            self.since = Instant::now();
        }
    }
}

/// How long to rest after so much work; not yet, if it is little.
fn rest_after(worked: Duration) -> Option<Duration> {
    (worked >= WORK).then(|| (worked * REST).min(REST_MAX))
}

impl Dispatcher {
    /// Sets who hears what retention has removed here, once; later calls change nothing.
    pub fn tell_removed(&self, told: impl Fn(&Removed) + Send + Sync + 'static) {
        let _ = self.0.removed_told.set(Box::new(told));
    }

    /// Removes what has stayed long enough, on the partitions led here, until the future is dropped.
    pub async fn retain(self, metadata: Partition) {
        loop {
            let next = self.pass(&metadata).await;
            let pause = next.map_or(PASS_MAX, |time| time.clamp(PASS_MIN, PASS_MAX));
            tokio::select! {
                () = self.0.retention_set.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Goes once over all hubs. Returns after what time something may go next: what has ended falls due, and what
    /// ends from now on does so later than all that is kept for as long.
    pub(super) async fn pass(&self, metadata: &Partition) -> Option<Duration> {
        let hubs = metadata.peek(|rows| read::hubs(&RowsView(rows)));
        // A hub that comes between two passes keeps nothing shorter than this.
        let usual = self.rules().retention;
        let mut next = usual.limited().map(|(_, time)| time).min();
        let mut turns = Turns::begin();
        for (name, hub) in &hubs {
            let mut removed = Removed {
                hub: name.clone(),
                by_status: BTreeMap::new(),
                by_partition: BTreeMap::new(),
                told: Arc::clone(&self.0.removed_told),
            };
            for (status, time) in usual.of(hub).limited() {
                next = Some(next.map_or(time, |known| known.min(time)));
                for partition in self.0.partitions.iter().filter(|partition| leads(partition)) {
                    let (turns, removed) = (&mut turns, &mut removed);
                    match self.retire(partition, hub.id, status, time, turns, removed).await {
                        Ok(due) => {
                            next = next.map(|known| known.min(due.unwrap_or(known)));
                        }
                        // Whoever leads it in the next pass goes on.
                        Err(error) => {
                            tracing::warn!(partition = %partition.id(), %error, "remove by retention");
                        }
                    }
                }
            }
        }
        next
    }

    /// The part of one partition and one status. Counts what went; returns after what time the next instance is due,
    /// if there is one.
    async fn retire(
        &self,
        partition: &Partition,
        hub: u32,
        status: OrchestrationStatus,
        time: Duration,
        turns: &mut Turns,
        removed: &mut Removed,
    ) -> Result<Option<Duration>, Error> {
        let time = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let cut_off = self.0.clock.now().saturating_sub(time);
        let list = List {
            hub,
            order: Order::Ended,
            statuses: vec![status],
            from: None,
            before: Some(cut_off),
            prefix: String::new(),
        };
        let mut after = None::<Mark>;
        while leads(partition) {
            turns.rest().await;
            let (part, behind) = (list.clone(), after.take());
            let found = look(partition, move |view| {
                let slice = read::list(view, &part, behind.as_ref(), STEP);
                let ids = slice.marks.into_iter().map(|mark| mark.instance);
                let seen =
                    ids.filter_map(|id| read::see(view, part.hub, &Known::root(id), 0, None));
                Found { seen: seen.collect(), reached: slice.reached }
            })
            .await;
            let mut targets = Vec::new();
            for seen in found.seen {
                if !self.runs_below(hub, &seen).await? {
                    targets.push(seen.target);
                }
            }
            let count = self.remove(partition, hub, status, cut_off, targets).await?;
            removed.count(partition.id(), status, count);
            after = found.reached;
            if after.is_none() {
                break;
            }
        }
        let list = List { from: Some(cut_off), before: None, ..list };
        let now = self.0.clock.now();
        let first = look(partition, move |view| read::list(view, &list, None, 1).marks.pop()).await;
        // Due at its end and so long after, which may be over by now.
        let due = first.map(|mark| mark.time.saturating_add(time).saturating_sub(now).max(0));
        Ok(due.map(|nanos| Duration::from_nanos(nanos.unsigned_abs())))
    }

    /// One command; what it says of the instances is checked again where it is applied.
    async fn remove(
        &self,
        partition: &Partition,
        hub: u32,
        status: OrchestrationStatus,
        cut_off: i64,
        targets: Vec<Target>,
    ) -> Result<usize, Error> {
        if targets.is_empty() {
            return Ok(0);
        }
        let command = Command::Purge(Purge {
            hub,
            targets,
            statuses: vec![status.into()],
            ended_before: Some(cut_off),
            ..Default::default()
        });
        match decode_answer(partition.propose(command.into_bytes()).await?) {
            Some(Ok(Reply::Purged { count })) => {
                self.0.meters.of(hub).removed(count.into());
                Ok(count as usize)
            }
            other => {
                let (hub, partition) = (self.hub_name(hub), partition.id());
                tracing::warn!(%hub, %partition, ?other, "remove by retention");
                Ok(0)
            }
        }
    }

    /// Whether anything below an instance has not ended.
    async fn runs_below(&self, hub: u32, root: &Seen) -> Result<bool, Error> {
        let mut known = BTreeSet::from([root.target.instance.clone()]);
        let mut level = root.children.clone();
        while !level.is_empty() {
            level.retain(|child| known.insert(child.instance.clone()));
            let mut parts: BTreeMap<GroupId, (&Partition, Vec<Known>)> = BTreeMap::new();
            for child in level.drain(..) {
                let partition = self.partition_of(hub, &child.instance);
                parts.entry(partition.id()).or_insert((partition, Vec::new())).1.push(child);
            }
            for (partition, children) in parts.into_values() {
                for some in children.chunks(STEP) {
                    // It may be led elsewhere: what was committed there by now counts.
                    let seen = super::see(partition, hub, some).await?;
                    if seen.iter().any(|child| !child.ended) {
                        return Ok(true);
                    }
                    level.extend(seen.into_iter().flat_map(|child| child.children));
                }
            }
        }
        Ok(false)
    }
}

fn leads(partition: &Partition) -> bool {
    matches!(*partition.leadership().borrow(), Leadership::Leader { .. })
}

/// Reads rows of a partition that is led here, on a thread that may wait for a disk.
async fn look<T: Send + 'static>(
    partition: &Partition,
    read: impl FnOnce(&dyn View) -> T + Send + 'static,
) -> T {
    let partition = partition.clone();
    let looking = tokio::task::spawn_blocking(move || partition.peek(|rows| read(&RowsView(rows))));
    match looking.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(found) => found,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The node stops.
        Err(Err(_)) => futures::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hub_says_goes_before_what_the_configuration_says() {
        let hour = Duration::from_secs(3600);
        let usual = Retention { completed: Some(hour), failed: Some(hour), terminated: None };
        assert_eq!(usual.of(&HubRecord::default()), usual);
        let own = RetentionRecord { completed: Some(5), failed: Some(0), terminated: None };
        let hub = HubRecord { retention: Some(own), ..Default::default() };
        let completed = Some(Duration::from_millis(5));
        assert_eq!(usual.of(&hub), Retention { completed, failed: None, terminated: None });
    }

    /// However many hubs there are, and however little there is to do for each: three quarters of the time are others'.
    #[test]
    fn a_pass_rests_three_times_as_long_as_it_works() {
        for step in [100, 1300, 100_000].map(Duration::from_micros) {
            let (mut since, mut worked, mut rested) =
                (Duration::ZERO, Duration::ZERO, Duration::ZERO);
            for _ in 0..1000 {
                (since, worked) = (since + step, worked + step);
                if let Some(rest) = rest_after(since) {
                    (since, rested) = (Duration::ZERO, rested + rest);
                }
            }
            assert!(rested >= (worked - WORK) * REST, "{rested:?} with steps of {step:?}");
        }
    }
}
