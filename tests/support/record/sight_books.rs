//! The checker of the bank: it accepts sound accounts and sees each kind of damage.

use durahub_proto::wire::EntityMetadata;

use crate::record::books::{Books, Transfer, compare};

/// Two accounts: 100 was paid into the first one, and 30 of it went to the second.
fn accounts(states: [&str; 2]) -> Vec<EntityMetadata> {
    let account = |(number, state): (usize, &str)| EntityMetadata {
        instance_id: format!("@account@{number:02}"),
        serialized_state: Some(state.into()),
        ..Default::default()
    };
    states.into_iter().enumerate().map(account).collect()
}

const SOUND: [&str; 2] = ["70 p1=100 t-from=-30", "30 t-to=30"];

fn found(accounts: &[EntityMetadata], terminated: bool) -> String {
    let books = Books::default();
    books.paid("p1".into(), "@account@00".into(), 100);
    let (from, to) = ("@account@00".into(), "@account@01".into());
    books.transferred("t".into(), Transfer { from, to, amount: 30, terminated });
    compare(&books, accounts).join("\n")
}

#[test]
fn accepts_sound_accounts() {
    assert_eq!(found(&accounts(SOUND), false), "");
    assert_eq!(found(&accounts(["100 p1=100", "0"]), true), "", "terminated before it moved any");
}

#[test]
fn sees_what_is_lost_doubled_or_half_done() {
    let seen = |states| found(&accounts(states), true);
    assert!(seen(["0", "0"]).contains("payment p1"));
    assert!(seen(["200 p1=100", "0 p1=100"]).contains("p1: at"));
    assert!(seen(["70 p1=100 t-from=-30", "0"]).contains("gave None"), "half of a transfer");
    assert!(seen(["170 p1=100 p2=100 t-from=-30", "30 t-to=30"]).contains("nobody asked for"));
    let nothing_moved = found(&accounts(["100 p1=100", "0"]), false);
    assert!(nothing_moved.contains("took None"), "{nothing_moved}");
}

#[test]
fn sees_a_balance_that_was_overwritten() {
    // Both operations were noted, but one of them read a balance before the other wrote it.
    assert!(found(&accounts(["100 p1=100 t-from=-30", "30 t-to=30"]), false).contains("(S10)"));
}

#[test]
fn sees_a_lock_that_is_left_and_operations_that_wait() {
    let mut locked = accounts(SOUND);
    locked[1].locked_by = Some("t".into());
    assert!(found(&locked, false).contains("locked by Some"));
    let mut waiting = accounts(SOUND);
    waiting[0].backlog_queue_size = 2;
    assert!(found(&waiting, false).contains("2 wait (S10)"));
}
