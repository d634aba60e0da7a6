//! The audit log: who did what, where, and what was decided; never a payload.

use std::collections::BTreeMap;
use std::time::Duration;

use durahub_proto::wire;
use serde_json::Value;

use super::Guarded;
use super::support::actions::{complete, fail, failure};
use super::support::{Client, Program, WorkerOptions};

async fn lines(guarded: &Guarded, count: usize) -> Vec<Value> {
    let path = guarded.path("audit.jsonl");
    let wait = async {
        loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if text.ends_with('\n') && text.lines().count() >= count {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let text = tokio::time::timeout(Duration::from_secs(30), wait).await.expect("lines");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn every_lifecycle_and_administrative_action_leaves_a_line_and_no_payload() {
    let guarded = Guarded::start(&[]).await;
    let contributor = guarded.client("contributor");
    let created = contributor.start("order-1", "Order", "\"secret payload\"").await;
    let drawn = contributor.start("", "Order", "\"secret payload\"").await;
    let mut rpc = contributor.rpc();
    rpc.terminate_instance(wire::TerminateRequest {
        instance_id: "order-1".into(),
        output: Some("\"secret payload\"".into()),
        ..Default::default()
    })
    .await
    .unwrap();
    // Reads leave none.
    contributor.rpc().get_instance(wire::GetInstanceRequest::default()).await.unwrap();
    // Refused: by role, by hub, and nobody.
    let mut denied = guarded.client("reader").rpc();
    denied.create_task_hub(wire::CreateTaskHubRequest::default()).await.unwrap_err();
    let query = wire::QueryInstancesRequest::default();
    guarded.client("other").rpc().query_instances(query).await.unwrap_err();
    let stranger = Client::over(guarded.channel(None)).in_hub("b");
    stranger.rpc().start_instance(wire::CreateInstanceRequest::default()).await.unwrap_err();
    // An operator, on the peer port.
    let token = guarded.token("root").to_owned();
    let peer = format!("http://{}", guarded.server.addresses.peer);
    let drain = ["cluster", "--endpoint", &peer, "drain", "1"];
    assert_eq!(guarded.run(&drain, &[("DURAHUB_TOKEN", &token)]).0, 0);

    let lines = lines(&guarded, 7).await;
    let row = |line: &Value| {
        let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
        [
            text("who"),
            text("identity"),
            text("what"),
            text("hub"),
            text("instance"),
            text("decision"),
        ]
        .join(" ")
    };
    let expected = [
        format!("contributor token StartInstance a {created} allowed"),
        format!("contributor token StartInstance a {drawn} allowed"),
        "contributor token TerminateInstance a order-1 allowed".to_owned(),
        "reader token CreateTaskHub a - denied".to_owned(),
        "other token QueryInstances a - denied".to_owned(),
        "- unknown StartInstance b - denied".to_owned(),
        "root token Drain - node 1 allowed".to_owned(),
    ];
    assert_eq!(lines.iter().map(row).collect::<Vec<_>>(), expected);
    for line in &lines {
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
        assert!(!line.to_string().contains("secret"), "{line}");
    }
    assert_eq!(lines[0]["code"], 0);
    assert!(lines[0]["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{}", lines[0]);

    // Rotated away: the next line goes into a new file of the old name.
    let (path, old) = (guarded.path("audit.jsonl"), guarded.path("audit.1"));
    std::fs::rename(&path, &old).unwrap();
    guarded.hang_up();
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    contributor.start("order-2", "Order", "").await;
    assert_eq!(self::lines(&guarded, 1).await[0]["instance"], "order-2");
}

/// Nobody calls for it: the node itself is the one who did it.
#[tokio::test]
async fn what_retention_removes_is_noted_and_no_payload() {
    let guarded = Guarded::start(&["--retention-completed=1s", "--retention-failed=1s"]).await;
    let contributor = guarded.client("contributor");
    let program = Program::new().orchestrator("Order", |history| match history.input() {
        "\"secret payload\"" => vec![complete(1, "\"secret payload\"")],
        _ => vec![fail(1, failure("Oops", "secret payload"))],
    });
    let _worker = program.run(&guarded.client("worker"), WorkerOptions::default());
    for (id, input) in
        [("one", "\"secret payload\""), ("two", "\"secret payload\""), ("three", "\"fails\"")]
    {
        contributor.start(id, "Order", input).await;
    }
    let (mut removed, expected) =
        (BTreeMap::new(), BTreeMap::from([("completed", 2), ("failed", 1)]));
    let mut count = 4;
    while removed != expected {
        let lines = lines(&guarded, count).await;
        removed = BTreeMap::new();
        for line in lines.iter().filter(|line| line["what"] == "RemoveInstances") {
            assert_eq!((&line["who"], &line["identity"]), (&"node 1".into(), &"server".into()));
            assert_eq!((&line["hub"], &line["decision"]), (&"a".into(), &"allowed".into()));
            for status in ["completed", "failed", "terminated"] {
                if let Some(more) = line["removed"][status].as_u64() {
                    *removed.entry(status).or_default() += more;
                }
            }
        }
        assert!(lines.iter().all(|line| !line.to_string().contains("secret")), "{lines:?}");
        count = lines.len() + 1;
    }
    for id in ["one", "two", "three"] {
        assert!(contributor.get(id).await.is_none(), "{id}");
    }
}

/// A caller that goes away before it is answered may have had its way: there is a line all the same.
#[tokio::test]
async fn who_does_not_wait_for_an_answer_is_noted_all_the_same() {
    let guarded = Guarded::start(&[]).await;
    let contributor = guarded.client("contributor");
    for number in 0..100 {
        let mut rpc = contributor.rpc();
        let call = rpc.start_instance(wire::CreateInstanceRequest {
            instance_id: format!("order-{number}"),
            name: "Order".into(),
            ..Default::default()
        });
        // Between "not even sent" and "nearly answered".
        let _ = tokio::time::timeout(Duration::from_micros(50 * number), call).await;
    }
    contributor.start("last", "Order", "").await;
    let query = wire::InstanceQuery { max_instance_count: 200, ..Default::default() };
    let request = wire::QueryInstancesRequest { query: Some(query) };
    let done = contributor.rpc().query_instances(request).await.unwrap().into_inner();
    let lines = lines(&guarded, done.orchestration_state.len()).await;
    for state in done.orchestration_state {
        let of_it = lines.iter().filter(|line| line["instance"] == *state.instance_id);
        assert_eq!(of_it.count(), 1, "lines of {}", state.instance_id);
    }
}
