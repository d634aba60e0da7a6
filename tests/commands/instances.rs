//! `durahub instance`.

use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::support::TestServer;
use crate::{command, greeter, run};

async fn get(server: &TestServer, id: &str) -> Value {
    run(server, &["instance", "get", id, "--output", "json"]).await.code(0).json()
}

#[tokio::test]
async fn an_instance_is_started_awaited_shown_and_explained() {
    let server = TestServer::start().await;
    let _worker = greeter(&server);
    // Without an id the server chooses, and the id is all that is printed.
    let started = run(&server, &["instance", "start", "Greet", "--input", "\"Ann\""]).await.code(0);
    let id = started.out.strip_suffix('\n').unwrap();
    assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()), "{id:?}");
    let awaited = run(&server, &["instance", "wait", id, "--timeout", "20s"]).await.code(0).out;
    for line in [format!("Instance   {id}").as_str(), "Name       Greet", "Status     Completed"] {
        assert!(awaited.lines().any(|it| it == line), "{line:?} is missing in\n{awaited}");
    }
    assert!(awaited.contains("Output     \"Hello Ann\""), "{awaited}");

    let json = get(&server, id).await;
    let shown = ["instanceId", "name", "status", "input", "output"].map(|key| &json[key]);
    assert_eq!(shown, [id, "Greet", "Completed", "\"Ann\"", "\"Hello Ann\""], "{json}");
    assert!(json["createdAt"].as_str().unwrap().ends_with('Z'), "{json}");
    let bare = ["instance", "get", id, "--no-payloads", "--output", "json"];
    let bare = run(&server, &bare).await.code(0).json();
    assert!(bare.get("input").is_none() && bare.get("output").is_none(), "{bare}");

    let history = run(&server, &["instance", "history", id]).await.code(0).out;
    let kinds: Vec<_> =
        history.lines().skip(1).filter_map(|it| it.split_whitespace().nth(3)).collect();
    let expected = [
        "orchestratorStarted",
        "executionStarted",
        "taskScheduled",
        "orchestratorStarted",
        "taskCompleted",
        "executionCompleted",
    ];
    for kind in expected {
        assert!(kinds.contains(&kind), "{kind} is missing in\n{history}");
    }
    assert!(history.contains("name=Hello"), "{history}");
    let json = run(&server, &["instance", "history", id, "--output", "json"]).await.code(0).json();
    let events = json["events"].as_array().unwrap();
    assert_eq!(events.len(), kinds.len());
    let result = events.iter().find_map(|it| it.get("taskCompleted")).unwrap();
    assert_eq!(result["result"], "\"Hello Ann\"");
}

#[tokio::test]
async fn start_takes_everything_that_the_protocol_does() {
    let server = TestServer::start().await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all("{\"from\": \"a file\"}".as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let line = [
        "instance",
        "start",
        "Later",
        "--id",
        "l",
        "--input-file",
        path,
        "--version-name",
        "2",
        "--at",
        "2200-01-31T08:00:00Z",
        "--tag",
        "team=blue",
        "--tag",
        "a=b=c",
        "--output",
        "json",
    ];
    assert_eq!(run(&server, &line).await.code(0).json(), json!({ "instanceId": "l" }));
    let state = get(&server, "l").await;
    assert_eq!(state["status"], "Pending");
    assert_eq!(state["input"], "{\"from\": \"a file\"}");
    assert_eq!(state["version"], "2");
    assert_eq!(state["scheduledStartAt"], "2200-01-31T08:00:00Z");
    assert_eq!(state["tags"], json!({ "team": "blue", "a": "b=c" }));
    // It may take the place of one that is pending only when that is said.
    let again = ["instance", "start", "Other", "--id", "l"];
    run(&server, &again).await.code(4);
    run(&server, &[&again[..], &["--replace", "completed,failed"]].concat()).await.code(4);
    run(&server, &[&again[..], &["--replace", "pending,terminated"]].concat()).await.code(0);
    assert_eq!(get(&server, "l").await["name"], "Other");
    run(&server, &["instance", "start", "A", "--input-file", "/nowhere"]).await.code(1);
}

#[tokio::test]
async fn an_instance_that_does_not_complete_is_told_by_the_code() {
    let server = TestServer::start().await;
    let worker = greeter(&server);
    run(&server, &["instance", "start", "Break", "--id", "b"]).await.code(0);
    let failed = run(&server, &["instance", "wait", "b", "--timeout", "20s"]).await.code(7);
    assert!(failed.out.contains("Failure") && failed.out.contains("Oops: broken"), "{failed:?}");
    assert!(!failed.out.contains('\u{1b}'), "nothing of an instance commands a terminal");
    let json = get(&server, "b").await;
    assert_eq!(json["failure"]["errorMessage"], "broken\u{1b}[2J", "programs get it as it is");

    // Rewound, it fails again; restarted under a new id, there are two.
    run(&server, &["instance", "rewind", "b", "--reason", "again"]).await.code(0);
    run(&server, &["instance", "wait", "b", "--timeout", "20s"]).await.code(7);
    let new = run(&server, &["instance", "restart", "b", "--new-id"]).await.code(0).out;
    assert_ne!(new.trim(), "b");
    run(&server, &["instance", "wait", new.trim(), "--timeout", "20s"]).await.code(7);
    assert_eq!(run(&server, &["instance", "restart", "b"]).await.code(0).out, "b\n");

    worker.stop().await;
    run(&server, &["instance", "start", "Await", "--id", "slow"]).await.code(0);
    for watch in [&[][..], &["--watch"]] {
        let line = [&["instance", "wait", "slow", "--timeout", "300ms"], watch].concat();
        run(&server, &line).await.code(8);
    }
}

#[tokio::test]
async fn a_watch_shows_every_change_until_the_end() {
    let server = TestServer::start().await;
    let _worker = greeter(&server);
    let line = ["instance", "start", "Await", "--id", "w", "--watch", "--output", "json"];
    let mut child = command(&server, &line).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || -> Option<Value> {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
        let line = line.expect("a line in time").unwrap()?;
        Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
    };
    let mut await_status = async |status: &str| loop {
        let state = next().await.unwrap_or_else(|| panic!("ended before {status}"));
        if state["status"] == status {
            return state;
        }
    };
    await_status("Running").await;
    run(&server, &["instance", "suspend", "w", "--reason", "lunch"]).await.code(0);
    await_status("Suspended").await;
    run(&server, &["instance", "resume", "w"]).await.code(0);
    await_status("Running").await;
    run(&server, &["instance", "raise", "w", "Go", "--input", "\"now\""]).await.code(0);
    assert_eq!(await_status("Completed").await["output"], "\"now\"");
    assert!(next().await.is_none(), "it ends with the instance");
    assert!(child.wait().await.unwrap().success());
    let shown = run(&server, &["instance", "get", "w", "--watch"]).await.code(0).out;
    assert!(shown.contains("Completed") && shown.ends_with("\"now\"\n"), "{shown}");
}

#[tokio::test]
async fn lists_are_filtered_and_as_long_as_wanted() {
    let server = TestServer::start().await;
    let names = |json: Value| -> Vec<String> {
        let list = json["instances"].as_array().unwrap().iter();
        list.map(|it| it["instanceId"].as_str().unwrap().to_owned()).collect()
    };
    for id in ["a1", "a2", "a3", "b1"] {
        run(&server, &["instance", "start", "Await", "--id", id, "--input", "5"]).await.code(0);
    }
    let line = ["instance", "terminate", "a2", "--output-payload", "\"enough\""];
    let worker = greeter(&server);
    run(&server, &line).await.code(0);
    run(&server, &["instance", "wait", "a2", "--timeout", "20s"]).await.code(7);
    assert_eq!(get(&server, "a2").await["output"], "\"enough\"");
    drop(worker);

    let list = async |more: &[&str]| {
        let line = [&["instance", "list", "--output", "json"], more].concat();
        run(&server, &line).await.code(0).json()
    };
    assert_eq!(names(list(&[]).await), ["a1", "a2", "a3", "b1"]);
    assert_eq!(names(list(&["--prefix", "a"]).await), ["a1", "a2", "a3"]);
    assert_eq!(names(list(&["--status", "terminated,failed"]).await), ["a2"]);
    assert_eq!(names(list(&["--created-to", "2020-01-01T00:00:00Z"]).await), [""; 0]);
    let two = list(&["--limit", "2"]).await;
    assert_eq!(two["hasMore"], true);
    assert!(two["instances"][0].get("input").is_none(), "{two}");
    assert_eq!(names(two), ["a1", "a2"]);
    let all = list(&["--all", "--payloads"]).await;
    assert_eq!((&all["hasMore"], &all["instances"][0]["input"]), (&json!(false), &json!("5")));
    let table = run(&server, &["instance", "list", "--limit", "3"]).await.code(0).out;
    assert!(table.starts_with("INSTANCE  NAME   STATUS"), "{table}");
    assert!(table.ends_with("there are more; see --limit and --all\n"), "{table}");
    assert_eq!(table.lines().count(), 5);
}

#[tokio::test]
async fn a_purge_takes_what_it_is_told_and_nothing_else() {
    let server = TestServer::start().await;
    let worker = greeter(&server);
    for id in ["a", "b", "c", "d"] {
        let start = ["instance", "start", "Greet", "--id", id, "--input", "1"];
        run(&server, &[&start[..], &["--watch", "--timeout", "20s"]].concat()).await.code(0);
    }
    run(&server, &["instance", "start", "Break", "--id", "f"]).await.code(0);
    run(&server, &["instance", "wait", "f", "--timeout", "20s"]).await.code(7);
    run(&server, &["instance", "start", "Await", "--id", "open"]).await.code(0);
    worker.stop().await;

    let purged = run(&server, &["instance", "purge", "a", "b", "open", "none"]).await.code(0).out;
    assert_eq!(purged, "2 instances purged\n");
    let purge = async |more: &[&str]| {
        let line = [&["instance", "purge", "--output", "json"], more].concat();
        run(&server, &line).await.code(0).json()
    };
    let whole = |count: i32| json!({ "deletedInstanceCount": count, "isComplete": true });
    assert_eq!(purge(&["--created-to", "2020-01-01T00:00:00Z"]).await, whole(0));
    assert_eq!(purge(&["--status", "failed", "--recursive"]).await, whole(1));
    assert_eq!(purge(&["--all", "--timeout", "30s"]).await, whole(2));
    let left = run(&server, &["instance", "list", "--output", "json"]).await.code(0).json();
    assert_eq!(left["instances"].as_array().unwrap().len(), 1);
    assert_eq!(left["instances"][0]["instanceId"], "open");
}
