//! `Purge` and `Sweep`: ended instances go, and nothing of them comes back (section 2.11, S11).
//!
//! A purge takes the head and the index rows at once, so nobody finds the instance any more and its id is
//! free. The other rows go with them while they are few; where they are many, a note stays behind, and
//! `Sweep` removes them command by command, each of a bounded size. Rows are known by their generation, so a
//! new instance of the same id loses nothing.

use std::collections::BTreeSet;

use durahub_proto::wire::OrchestrationStatus;

use super::Plan;
use crate::engine::command::Purge;
use crate::engine::reply::{Answer, Reply};
use crate::engine::state::{Address, InstanceRecord};
use crate::engine::{Effect, Event, read};

/// Rows that one command removes besides heads, inboxes and index rows.
const ROWS: u32 = 512;
/// Bytes of history that one command may remove, and so look at.
const BYTES: u64 = 1 << 20;

/// What one command may still remove.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    rows: u32,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { rows: ROWS, bytes: BYTES }
    }
}

impl Budget {
    /// Takes what an instance may have; false if that is too much.
    fn take(&mut self, record: &InstanceRecord) -> bool {
        let rows = u64::from(record.history_events).saturating_add(record.next_number);
        let enough = rows <= u64::from(self.rows) && record.history_bytes <= self.bytes;
        if enough {
            self.rows -= rows as u32;
            self.bytes -= record.history_bytes;
        }
        enough
    }
}

impl Purge {
    /// Whether an instance may be purged: it has ended, it is the one that was meant, and it is still what the
    /// filter says.
    fn wants(&self, generation: u64, record: &InstanceRecord) -> bool {
        let statuses =
            || self.statuses.iter().filter_map(|it| OrchestrationStatus::try_from(*it).ok());
        record.is_terminal()
            && (generation == 0 || generation == record.generation)
            && (self.statuses.is_empty() || statuses().any(|status| status == record.status()))
            && self.created_from.is_none_or(|from| record.created >= from)
            && self.created_before.is_none_or(|before| record.created < before)
            && self.ended_before.is_none_or(|before| record.completed.is_some_and(|at| at < before))
    }
}

/// Purges the instances that fulfil the conditions; the answer counts them.
pub(crate) fn purge(plan: &mut Plan<'_>, command: Purge) -> Answer {
    let mut seen = BTreeSet::new();
    for target in &command.targets {
        let at = Address::new(command.hub, target.instance.clone());
        let record = read::head(plan.view, &at);
        let Some(record) = record.filter(|record| command.wants(target.generation, record)) else {
            continue;
        };
        if seen.insert(target.instance.clone()) {
            plan.remove(&at, &record);
        }
    }
    Ok(Reply::Purged { count: seen.len() as u32 })
}

/// Removes some of what purged instances and long generations left behind.
pub(crate) fn sweep(plan: &mut Plan<'_>) -> Answer {
    let (mut rows, mut bytes) = (ROWS as usize, BYTES as usize);
    for leftover in read::leftovers(plan.view, ROWS as usize / 4) {
        let found = read::rows_of(plan.view, &leftover, rows, bytes);
        rows -= found.keys.len().min(rows);
        bytes -= found.bytes.min(bytes);
        let done = found.done;
        plan.push(Event::LeftoverSwept { leftover, keys: found.keys, done });
        if !done {
            break;
        }
    }
    Ok(Reply::Done)
}

impl Plan<'_> {
    /// Removes an instance.
    pub(crate) fn remove(&mut self, at: &Address, record: &InstanceRecord) {
        self.clear_inbox(at);
        let later = !self.budget.take(record);
        self.push(Event::InstanceRemoved { at: at.clone(), generation: record.generation, later });
        self.tell(Effect::InstanceGone { at: at.clone() });
        self.leave(later);
    }

    /// Discards the generation of a head that is about to be replaced.
    pub(crate) fn discard(&mut self, at: &Address, record: &InstanceRecord) {
        let later = !self.budget.take(record);
        self.push(Event::GenerationDiscarded {
            at: at.clone(),
            generation: record.generation,
            later,
        });
        self.leave(later);
    }

    fn leave(&mut self, later: bool) {
        if later {
            self.tell(Effect::SweepDue);
        }
    }
}

#[cfg(test)]
mod tests;
