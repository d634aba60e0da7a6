//! How a run ends: all work is done and nothing is left behind, or the hub is deleted in the middle of it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

impl Bank {
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.now += 1_000_000_000;
        self.fire();
        for round in 0.. {
            assert!(round < 1000, "it never ends (L1)");
            let mut busy = false;
            for from in 0..PARTITIONS {
                for to in 0..PARTITIONS {
                    while self.deliver(from, to, 7, true) {
                        busy = true;
                    }
                }
                self.truncate(from);
            }
            for account in (0..ACCOUNTS).map(|n| format!("@account@{n}")) {
                self.batches.clear();
                while self.hand_out(&account) {
                    busy = true;
                    let batch = self.batches.pop().expect("was handed out");
                    let count = batch.count;
                    self.commit(batch, count);
                }
            }
            for teller in (0..TELLERS).map(|n| format!("teller{n}")) {
                while self.turn(&teller) {
                    busy = true;
                }
                // One that waits for nothing is told to go on; one that waits for a lock gets it by itself.
                let head = read::head(self.rows(&teller), &Address::new(HUB, teller.clone()));
                if !busy && head.is_some_and(|it| !it.is_terminal() && it.section.is_none()) {
                    self.nudge(&teller);
                    busy = true;
                }
            }
            if !busy {
                return;
            }
        }
    }

    pub(super) fn check(&self) {
        let mut sum = 0;
        for account in (0..ACCOUNTS).map(|n| format!("@account@{n}")) {
            let (rows, at) = (self.rows(&account), Address::new(HUB, account.clone()));
            let Some(record) = read::entity(rows, &at) else { continue };
            assert_eq!(record.lock, None, "{account} is locked by nobody that lives (S10)");
            let waits = (record.front, record.main, record.lock_requests);
            assert_eq!(waits, (0, 0, 0), "nothing waits for {account}");
            let balance =
                read::entity_state(rows, &at).map_or(0, |it| it.as_str().parse().unwrap());
            sum += balance;
        }
        assert_eq!(sum, self.paid_in, "the sum stays");
        assert_eq!(self.sent, self.ran, "operations that were sent, and that ran (S7)");
        assert!(self.delayed.is_empty(), "delayed operations that never ran: {:?}", self.delayed);
        for (number, partition) in self.partitions.iter().enumerate() {
            assert!(read::open_work(&partition.rows).is_empty(), "work of partition {number}");
            assert_eq!(read::outbox_after(&partition.rows, None, 1), [], "outbox {number}");
            assert!(!partition.rows.keys().any(|key| key[0] == 0x1f), "queue rows {number}");
            let mut replayed = BTreeMap::new();
            for (stamp, command) in &partition.log {
                let applied = apply(&replayed, *stamp, command);
                absorb(&mut replayed, applied.changes);
            }
            assert!(replayed == partition.rows, "partition {number}: replay equals live (S13)");
        }
        for teller in (0..TELLERS).map(|n| format!("teller{n}")) {
            let head = read::head(self.rows(&teller), &Address::new(HUB, teller.clone()));
            assert!(head.is_none_or(|it| it.is_terminal()), "{teller} has ended (L1)");
        }
    }

    /// S11: a hub goes bit by bit while its instances and entities go on; in the end no row is left of it, in any
    /// partition, but that it is closed.
    pub(super) fn delete_hub(&mut self) {
        self.saw("deleted");
        self.deleting = true;
        let mut left: BTreeSet<u32> = (0..PARTITIONS).collect();
        for round in 0.. {
            assert!(round < 10_000, "it never ends");
            let partition = self.random.below(PARTITIONS.into()) as u32;
            let clear = Command::ClearHub(command::ClearHub { hub: HUB });
            match self.apply(partition, clear).expect("is accepted") {
                Reply::Step { done: true } => left.remove(&partition),
                _ => left.insert(partition),
            };
            if left.is_empty() {
                break;
            }
            // What was handed out before comes back now, and what was sent arrives.
            let teller = self.some_teller();
            match self.random.below(6) {
                0 => drop(self.turn(&teller)),
                1 => self.late_batch(),
                2 => self.fire(),
                _ => self.some_errand(),
            }
        }
        // What was sent, and what its arrival sends on.
        for _ in 0..4 {
            for from in 0..PARTITIONS {
                for to in 0..PARTITIONS {
                    while self.deliver(from, to, 7, true) {}
                }
                self.truncate(from);
            }
        }
        for (number, partition) in self.partitions.iter().enumerate() {
            let rows: Vec<_> = partition.rows.keys().filter(|key| !is_kept(key)).collect();
            assert!(rows.is_empty(), "partition {number} keeps {rows:?}");
        }
    }

    /// A worker answers a batch of a hub that is going: refused, or the last that is heard of it.
    fn late_batch(&mut self) {
        if let Some(batch) = self.batches.pop() {
            let results = vec![wire::OperationResult::default(); batch.count as usize];
            let home = home(&batch.instance);
            let complete =
                CompleteBatch { batch, results, state: Some("1".into()), ..Default::default() };
            let _ = self.apply(home, Command::CompleteBatch(complete));
        }
    }
}

/// What stays of a deleted hub: that it is closed (0x1a), and what was delivered (0x17).
fn is_kept(key: &[u8]) -> bool {
    matches!(key[0], 0x17 | 0x1a)
}
