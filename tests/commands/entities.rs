//! `durahub entity`: who holds an entity and who waits for it can be seen, while it lasts.

use durahub_proto::wire;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::send_entity_message_action::EntityMessageType as Message;

use crate::support::actions::{action, complete, terminated};
use crate::support::client::good;
use crate::support::{Client, TestServer, Worker, WorkerOptions};
use crate::{Ran, run};

fn lock(set: &[&str]) -> wire::OrchestratorAction {
    let request = wire::EntityLockRequestedEvent {
        critical_section_id: "section-1".into(),
        lock_set: set.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    };
    let message = Some(Message::EntityLockRequested(request));
    action(
        1,
        Action::SendEntityMessage(wire::SendEntityMessageAction { entity_message_type: message }),
    )
}

async fn signal(client: &Client, entity: &str) {
    let request = wire::SignalEntityRequest {
        instance_id: entity.into(),
        name: "add".into(),
        request_id: format!("{:032x}", fastrand::u128(..)),
        ..Default::default()
    };
    good("signal", client.rpc().signal_entity(request).await);
}

/// Runs a command until its output is as it should be.
async fn until(server: &TestServer, line: &[&str], what: impl Fn(&Ran) -> bool) -> Ran {
    for _ in 0..600 {
        let ran = run(server, line).await.code(0);
        if what(&ran) {
            return ran;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{line:?}: {:?}", run(server, line).await)
}

#[tokio::test]
async fn holders_and_waiters_of_locks_are_shown() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    signal(&client, "@account@a").await;
    let batch = worker.next_entity().await;
    let result = wire::EntityBatchResult {
        results: vec![wire::OperationResult::default()],
        entity_state: Some("7".into()),
        ..Default::default()
    };
    worker.complete_entity(&batch, result).await;
    let none = run(&server, &["entity", "locks", "--output", "json"]).await.code(0).json();
    assert_eq!(none["locks"].as_array().unwrap().len(), 0);

    let mut turns = Vec::new();
    for id in ["holder", "waiter"] {
        client.start(id, "O", "").await;
        let turn = worker.next_turn().await;
        worker.complete_turn(&turn, vec![lock(&["@account@b", "@Account@a"])]).await;
        turns.push(turn);
        if id == "holder" {
            turns.push(worker.next_turn().await);
        }
    }
    let line = ["entity", "locks", "--output", "json"];
    let seen = until(&server, &line, |ran| ran.json()["locks"][0]["waiting"] == 1).await.json();
    let locks = seen["locks"].as_array().unwrap();
    assert_eq!(locks.len(), 2, "{seen}");
    let [a, b] = [&locks[0], &locks[1]];
    assert_eq!((&a["entityId"], &b["entityId"]), (&"@account@a".into(), &"@account@b".into()));
    for lock in [a, b] {
        assert_eq!(lock["holder"]["instanceId"], "holder");
        assert_eq!(lock["holder"]["criticalSectionId"], "section-1");
        assert!(lock["holder"]["since"].as_str().unwrap().starts_with("20"), "{seen}");
    }
    assert_eq!(a["firstWaiting"][0]["instanceId"], "waiter");
    assert!(
        a["firstWaiting"][0]["since"].as_str().unwrap() >= a["holder"]["since"].as_str().unwrap()
    );
    assert_eq!((&b["waiting"], &b["firstWaiting"]), (&0.into(), &serde_json::json!([])));

    let table = run(&server, &["entity", "locks", "--prefix", "@account@a"]).await.code(0).out;
    let lines: Vec<_> = table.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("ENTITY"), "{table}");
    assert!(lines[1].contains("holder") && lines[1].contains("waiter"), "{table}");
    let got =
        run(&server, &["entity", "get", "@Account@a", "--output", "json"]).await.code(0).json();
    assert_eq!((&got["lockedBy"], &got["state"]), (&"holder".into(), &"7".into()), "R5.37");
    let missing = run(&server, &["entity", "get", "@account@b"]).await.code(3);
    assert!(missing.err.contains("there is no entity @account@b"), "{missing:?}");
    let listed = run(&server, &["entity", "list", "--transient"]).await.code(0).out;
    assert_eq!(
        listed.lines().count(),
        3,
        "one without a state is shown on request (R5.38): {listed}"
    );
    let listed = run(&server, &["entity", "list", "--changed-from", "2020-01-01T00:00:00Z"])
        .await
        .code(0)
        .out;
    assert_eq!(listed.lines().count(), 2, "{listed}");

    let terminate = wire::TerminateRequest { instance_id: "waiter".into(), ..Default::default() };
    good("terminate", client.rpc().terminate_instance(terminate).await);
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, vec![terminated(2, "")]).await;
    until(&server, &line, |ran| ran.json()["locks"][0]["waiting"] == 0).await;
    worker.complete_turn(&turns[1], vec![complete(2, "done")]).await;
    until(&server, &line, |ran| ran.json()["locks"] == serde_json::json!([])).await;
}
