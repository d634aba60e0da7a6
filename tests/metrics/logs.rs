//! Logs: they say where and what about, and never what was in it, however much is logged.

use durahub_proto::wire;

use super::support::actions::{complete, fail, failure, schedule_task};
use super::support::{Program, TestServer, WorkerOptions};

/// Stands in every payload.
const SECRET: &str = "a-payload-that-nobody-logs";

fn secret() -> String {
    format!("\"{SECRET}\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_name_hub_partition_and_instance_and_hold_no_payload() {
    let filter = "--log-level=info,durahub=trace,durahub_cluster=trace";
    let server = TestServer::start_with_args(&[filter]).await;
    let client = server.client();
    let program = Program::new()
        .orchestrator("Order", |history| match history.result(1) {
            None => vec![schedule_task(1, "Pay", &secret())],
            Some(Ok(_)) if history.raised("Paid").is_empty() => Vec::new(),
            Some(Ok(result)) => vec![complete(2, &result)],
            Some(Err(_)) => vec![fail(2, failure("Oops", SECRET))],
        })
        .orchestrator("Break", |_| vec![fail(1, failure("Oops", SECRET))])
        .activity("Pay", |_| Ok(secret()));
    let _worker =
        program.run(&client, WorkerOptions::default().serving(&["Order", "Break"], &["Pay"]));
    for (id, name) in [("pays", "Order"), ("breaks", "Break"), ("ends", "Order")] {
        client.start(id, name, &secret()).await;
    }
    client.wait_started("ends").await;
    let reason = || Some(SECRET.to_owned().into());
    let suspend = wire::SuspendRequest { instance_id: "ends".into(), reason: reason() };
    client.rpc().suspend_instance(suspend).await.unwrap();
    let resume = wire::ResumeRequest { instance_id: "ends".into(), reason: reason() };
    client.rpc().resume_instance(resume).await.unwrap();
    client.terminate("ends", &secret()).await;
    client.raise("pays", "Paid", &secret()).await;
    let signal = wire::SignalEntityRequest {
        instance_id: "@account@1".into(),
        name: "pay".into(),
        input: Some(secret().into()),
        request_id: "00000000-0000-4000-8000-000000000001".into(),
        ..Default::default()
    };
    client.rpc().signal_entity(signal).await.unwrap();
    // What is refused is told, and not shown.
    let large = wire::CreateInstanceRequest {
        instance_id: "large".into(),
        name: "Order".into(),
        input: Some(SECRET.repeat(100_000).into()),
        ..Default::default()
    };
    let refused = client.rpc().start_instance(large).await.unwrap_err();
    assert!(!refused.message().contains(SECRET), "{refused}");
    for id in ["pays", "breaks", "ends"] {
        client.wait(id).await;
    }

    let log = server.log();
    assert!(!log.contains(SECRET), "{:?}", log.lines().find(|line| line.contains(SECRET)));
    let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    let lines: Vec<serde_json::Value> = lines.collect();
    let applied = lines.iter().filter(|line| line["message"] == "applied");
    assert!(applied.clone().count() > 20, "much is logged");
    assert!(applied.clone().any(|line| line["event"] == "EventReceived"), "{log}");
    for message in ["suspended", "resumed", "termination requested"] {
        let line = lines.iter().find(|line| line["message"] == message).unwrap();
        assert_eq!((&line["hub"], &line["instance"]), (&"default".into(), &"ends".into()));
        assert!(!line["partition"].is_null(), "{line}");
    }
    // A hub has a name for people, and a number for the rows.
    let numbered = |line: &&serde_json::Value| {
        let target = line["target"].as_str().unwrap_or_default();
        let is_ours = ["durahub::dispatch", "durahub::gateway"].map(|own| target.starts_with(own));
        is_ours.contains(&true) && line["hub"].is_number()
    };
    assert!(lines.iter().any(|line| line["target"] == "durahub::gateway::worker_api"));
    assert_eq!(lines.iter().find(numbered), None);
    let led = lines.iter().filter(|line| line["message"] == "leading");
    assert!(led.filter(|line| !line["partition"].is_null()).count() >= 8, "{log}");
}
