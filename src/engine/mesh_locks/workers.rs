//! Workers of accounts: they commit batches in part, late, twice, or fail.

use durahub_proto::wire;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::operation_result::ResultType;

use super::super::command::{BatchId, CompleteBatch};
use super::super::read::{self, BatchRoom};
use super::super::state::{Address, Operation};
use super::super::{Command, Reject};
use super::{Bank, HUB, event, home};

impl Bank {
    pub(super) fn hand_out(&mut self, account: &str) -> bool {
        let at = Address::new(HUB, account);
        let operations = 1 + self.random.below(4) as usize;
        let room = BatchRoom { operations, operation_bytes: 1 << 20, bytes: 1 << 20 };
        let Some(batch) = read::batch(self.rows(account), &at, room) else { return false };
        self.batches.push(batch.expect("fits").id);
        true
    }

    /// Commits a batch that was handed out some time ago, in whole, in part, or not at all.
    pub(super) fn commit_some(&mut self) {
        if self.batches.is_empty() {
            return;
        }
        let index = self.random.below(self.batches.len() as u64) as usize;
        let id = match self.random.below(4) {
            0 => self.batches[index].clone(),
            _ => self.batches.swap_remove(index),
        };
        let count = match self.random.below(8) {
            _ if self.draining => id.count,
            0 => 0,
            1 => 1 + self.random.below(id.count.into()) as u32,
            _ => id.count,
        };
        self.commit(id, count);
    }

    pub(super) fn commit(&mut self, id: BatchId, count: u32) {
        let at = id.at();
        let rows = self.rows(&at.instance);
        let record = read::entity(rows, &at);
        let current = record.as_ref().and_then(|record| read::operations_of(rows, record, &id));
        // What a worker that was handed the batch has computed; a stale one may compute anything.
        let mut balance: i64 = match read::entity_state(rows, &at) {
            Some(state) => state.as_str().parse().unwrap(),
            None => 0,
        };
        let operations: Vec<Operation> = match &current {
            Some(operations) => operations.iter().map(|(_, operation)| operation.clone()).collect(),
            None => vec![Operation::default(); count as usize],
        };
        let mut results = Vec::new();
        for operation in operations.iter().take(count as usize) {
            balance += amount_of(operation).unwrap_or(77);
            results.push(wire::OperationResult {
                result_type: Some(ResultType::Success(wire::OperationResultSuccess {
                    result: Some(balance.to_string().into()),
                    ..Default::default()
                })),
            });
        }
        let state = Some(balance.to_string().into());
        let complete = CompleteBatch { batch: id.clone(), results, state, ..Default::default() };
        let answer = self.apply(home(&at.instance), Command::CompleteBatch(complete));
        let Some(record) = record.filter(|_| current.is_some()) else {
            assert_eq!(answer, Err(Reject::StaleBatch));
            return self.saw("stale batch");
        };
        answer.expect("is current");
        if count == 0 {
            self.saw("broken batch");
            // It may have been one too often.
            let rows = self.rows(&at.instance);
            let left = read::entity(rows, &at).filter(|it| it.failures > 0);
            assert!(left.is_some(), "no batch here fails ten times");
            return;
        }
        if count < id.count {
            self.saw("partial batch");
        }
        for operation in operations.iter().take(count as usize) {
            if let Some(lock) = &record.lock {
                self.saw("ran while locked");
                let sender = operation.sender.as_ref();
                assert_eq!(
                    sender,
                    Some(&lock.holder.owner),
                    "only the holder's operations run (R5.30)"
                );
            }
            self.note(&at.instance, operation);
        }
    }

    /// S7: once, and in the order of the sender.
    pub(super) fn note(&mut self, account: &str, operation: &Operation) {
        let input = input_of(operation);
        let mut parts = input.split(' ');
        let (sender, number) = (parts.next().unwrap(), parts.next().unwrap());
        if number == "0" {
            assert!(self.delayed.remove(sender), "{sender} ran twice");
            return;
        }
        let ran = self.ran.entry((sender.into(), account.into())).or_default();
        assert_eq!(
            number.parse(),
            Ok(*ran + 1),
            "{sender} to {account}: twice or out of order (S7)"
        );
        *ran += 1;
    }

    // --- couriers ---
}

pub(super) fn input_of(operation: &Operation) -> String {
    match event(&operation.event) {
        EventType::EntityOperationSignaled(it) => it.input.unwrap().as_str().to_owned(),
        EventType::EntityOperationCalled(it) => it.input.unwrap().as_str().to_owned(),
        other => panic!("workers are sent operations only (R3.38), not {other:?}"),
    }
}

pub(super) fn amount_of(operation: &Operation) -> Option<i64> {
    if operation.event.is_empty() {
        return None;
    }
    input_of(operation).rsplit(' ').next()?.parse().ok()
}
