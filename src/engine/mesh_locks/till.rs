//! What a teller knows of itself, and chance.

use std::collections::BTreeSet;

use durahub_proto::wire::history_event::EventType;

/// Where a teller stands, as its history tells.
#[derive(Default)]
pub(super) struct Till {
    pub(super) section: String,
    /// What it has locked and not given back, in the order of the request.
    pub(super) set: Vec<String>,
    pub(super) granted: bool,
    pub(super) called: usize,
    pub(super) answered: usize,
    pub(super) terminated: bool,
}

impl Till {
    pub(super) fn read(history: &[EventType]) -> Till {
        let mut till = Till::default();
        let (mut asked, mut starts) = (BTreeSet::new(), 0);
        for it in history {
            match it {
                EventType::ExecutionStarted(_) => starts += 1,
                EventType::ExecutionTerminated(_) => till.terminated = true,
                EventType::EntityLockRequested(it) => {
                    let mut set = it.lock_set.clone();
                    set.sort();
                    set.dedup();
                    let section = it.critical_section_id.clone();
                    till = Till { section, set, terminated: till.terminated, ..Till::default() };
                }
                EventType::EntityLockGranted(it) => {
                    assert_eq!(
                        it.critical_section_id, till.section,
                        "granted once, and what was asked for"
                    );
                    assert!(!till.granted, "granted once");
                    till.granted = true;
                }
                EventType::EntityUnlockSent(it) => {
                    let target = it.target_instance_id.as_ref().unwrap().as_str();
                    till.set.retain(|account| account != target);
                    till.granted &= !till.set.is_empty();
                }
                EventType::EntityOperationCalled(it) => {
                    till.called += 1;
                    assert!(asked.insert(it.request_id.clone()));
                }
                EventType::EntityOperationCompleted(it) => {
                    till.answered += 1;
                    assert!(
                        asked.remove(&it.request_id),
                        "an answer that nobody waits for (R5.13)"
                    );
                }
                _ => {}
            }
        }
        assert_eq!(starts, 1, "R3.25");
        till
    }

    pub(super) fn is_inside(&self) -> bool {
        !self.set.is_empty()
    }
}

/// The same numbers for the same seed, for ever.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}
