//! Waits of a gateway that does not hold the rows, as the leader of the instance answers them.

use std::time::Duration;

use bytes::Bytes;
use durahub_proto::peer::ask::About;
use durahub_proto::peer::ask_outcome::Outcome;
use durahub_proto::peer::{Ask, AskOutcome, WaitFor};
use durahub_proto::wire;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use prost::Message as _;
use tokio::task::JoinHandle;

use super::caller::{dispatcher, next, start};
use crate::dispatch::{Dispatcher, StreamOptions};
use crate::engine::Address;
use crate::engine::command::{Command, Purge, Target};

/// Asks the leader for a wait for the instance "a".
fn wait(leader: &Dispatcher, completed: bool, known: bool) -> JoinHandle<Option<Outcome>> {
    let wait = WaitFor { instance: "a".into(), completed, known };
    let question = Ask { hub: 1, about: Some(About::WaitFor(wait)) };
    let (program, question) = (leader.program(), Bytes::from(question.encode_to_vec()));
    tokio::spawn(async move {
        let answer = program.answer(question).await.expect("an answer");
        AskOutcome::decode(answer).expect("it decodes").outcome
    })
}

/// How it ends, soon.
async fn ended(wait: JoinHandle<Option<Outcome>>) -> Option<Outcome> {
    let ended = tokio::time::timeout(Duration::from_secs(10), wait).await;
    ended.expect("in time").expect("no panic")
}

/// Whether it ends soon, with nothing but that there may be news.
async fn ends(wait: JoinHandle<Option<Outcome>>) {
    let ended = ended(wait).await;
    assert!(matches!(ended, Some(Outcome::Done(_))), "{ended:?}");
}

async fn goes_on(wait: &JoinHandle<Option<Outcome>>) {
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!wait.is_finished());
}

#[tokio::test]
async fn a_wait_at_the_leader_ends_when_its_instance_gets_there_or_goes() {
    let (node, leader, _leading) = dispatcher().await;
    let (started, completed) = (wait(&leader, false, false), wait(&leader, true, false));
    goes_on(&started).await;
    start(&leader).await;
    goes_on(&started).await;
    let options = StreamOptions { hub: 1, ..Default::default() };
    let mut stream = leader.open_stream(options, futures::future::pending());
    let end = wire::CompleteOrchestrationAction {
        orchestration_status: wire::OrchestrationStatus::Completed.into(),
        ..Default::default()
    };
    let end = Some(Action::CompleteOrchestration(end));
    let response = wire::OrchestratorResponse {
        instance_id: "a".into(),
        completion_token: next(&mut stream).await.completion_token,
        actions: vec![wire::OrchestratorAction { id: 1, orchestrator_action_type: end }],
        ..Default::default()
    };
    leader.complete_turn(1, response, ()).await.expect("commits");
    ends(started).await;
    ends(completed).await;
    // It is there already.
    ends(wait(&leader, true, false)).await;

    let targets = vec![Target { instance: "a".into(), generation: 0 }];
    let purge = Command::Purge(Purge { hub: 1, targets, ..Default::default() });
    leader.partition_of(1, "a").propose(purge.into_bytes()).await.expect("commits");
    // Whoever has seen it hears that it is gone; whoever has not waits for it.
    ends(wait(&leader, true, true)).await;
    let unknown = wait(&leader, true, false);
    goes_on(&unknown).await;
    node.stop().await;
    // It leads no more: whoever asks looks for somebody else, and does not take this one for the leader.
    let ended = ended(unknown).await;
    assert!(matches!(ended, Some(Outcome::NotLeader(_))), "{ended:?}");
}

/// A client that goes away leaves nothing at the leader: the link cancels its question.
#[tokio::test]
async fn a_wait_at_the_leader_ends_with_its_asker() {
    let (node, leader, _leading) = dispatcher().await;
    let waiting = || leader.0.waiters.count(&Address::new(1, "a"));
    let (leaves, stays) = (wait(&leader, true, false), wait(&leader, true, false));
    let are_there = async {
        while waiting() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), are_there).await.expect("both wait");
    leaves.abort();
    assert!(leaves.await.expect_err("it was cancelled").is_cancelled());
    assert_eq!(waiting(), 1);
    goes_on(&stays).await;
    node.stop().await;
}
