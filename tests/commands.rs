//! `durahub hub`, `durahub instance`, `durahub completions`: the real binary as a client of the real server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "commands/entities.rs"]
mod entities;
#[path = "commands/hubs.rs"]
mod hubs;
#[path = "commands/instances.rs"]
mod instances;
mod support;

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use support::TestServer;
use support::actions::{complete, fail, failure, schedule_task};
use support::{Program, WorkerOptions, program::Running};

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// It must have ended so.
    #[track_caller]
    fn code(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{self:?}");
        // A failure is one message, a success none.
        let messages = self.err.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(messages, usize::from(code != 0), "{self:?}");
        self
    }

    /// The JSON that it printed.
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A command on its way.
pub(crate) fn command(server: &TestServer, line: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_durahub"));
    command.args(line).env_remove("DURAHUB_TASK_HUB").env_remove("RUST_BACKTRACE");
    command.env("DURAHUB_ENDPOINT", format!("http://{}", server.addresses.grpc));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

/// Runs a command of this server to its end.
pub(crate) async fn run(server: &TestServer, line: &[&str]) -> Ran {
    let output = tokio::time::timeout(Duration::from_secs(30), command(server, line).output());
    let output = output.await.unwrap_or_else(|_| panic!("{line:?} did not end")).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// A worker with one activity that greets, an orchestrator that asks it, one that fails, one that waits for
/// the event `Go`.
pub(crate) fn greeter(server: &TestServer) -> Running {
    Program::new()
        .orchestrator("Greet", |history| match history.result(1) {
            None => vec![schedule_task(1, "Hello", history.input())],
            Some(result) => vec![complete(2, &result.expect("Hello never fails"))],
        })
        .orchestrator("Break", |_| vec![fail(1, failure("Oops", "broken\u{1b}[2J"))])
        .orchestrator("Await", |history| match history.raised("Go").first() {
            None => Vec::new(),
            Some(data) => vec![complete(1, data)],
        })
        .activity("Hello", |name| Ok(format!("\"Hello {}\"", name.trim_matches('"'))))
        .run(&server.client(), WorkerOptions::default())
}

#[tokio::test]
async fn every_shell_gets_a_script_that_knows_the_commands() {
    let server = TestServer::start().await;
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&server, &["completions", shell]).await.code(0).out;
        for word in ["instance", "terminate", "task-hub", "durahub"] {
            assert!(script.contains(word), "{word:?} is missing for {shell}");
        }
    }
    // A shell reads it, and completes with it.
    let script = r#"source <("$0" completions bash) && COMP_WORDS=(durahub instance ter) COMP_CWORD=2 &&
        _durahub durahub ter instance && echo "${COMPREPLY[@]}""#;
    let bash = std::process::Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_durahub")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(bash.stdout).unwrap(), "terminate\n", "{:?}", bash.stderr);
}

#[tokio::test]
async fn failures_are_told_apart_by_code() {
    let server = TestServer::start().await;
    run(&server, &["instance", "get", "nobody"]).await.code(3);
    run(&server, &["instance", "history", "nobody"]).await.code(3);
    run(&server, &["instance", "wait", "nobody"]).await.code(3);
    for change in ["terminate", "suspend", "resume", "rewind", "restart"] {
        run(&server, &["instance", change, "nobody"]).await.code(3);
    }
    run(&server, &["instance", "raise", "nobody", "Go"]).await.code(3);
    let hub = run(&server, &["instance", "list", "--task-hub", "nowhere"]).await.code(3);
    assert!(hub.err.contains("Task hub not found: nowhere"), "{hub:?}");
    run(&server, &["instance", "purge"]).await.code(2);
    run(&server, &["instance", "list", "--created-from", "yesterday"]).await.code(2);
    let away = ["instance", "list", "--endpoint", "http://127.0.0.1:1"];
    let away = run(&server, &away).await.code(5);
    assert!(away.err.contains("http://127.0.0.1:1") && away.err.contains("refused"), "{away:?}");
    run(&server, &["instance", "start", "Greet", "--id", "a"]).await.code(0);
    run(&server, &["instance", "start", "Greet", "--id", "a"]).await.code(4);
    run(&server, &["instance", "rewind", "a"]).await.code(4);
    let long = "x".repeat(200);
    run(&server, &["instance", "start", "Greet", "--id", &long]).await.code(4);
}
