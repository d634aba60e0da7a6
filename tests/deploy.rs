//! What stands in `deploy/`: it says what the program says, and the tools of operators take it.
//!
//! The configuration reference, the settings in the chart's schema, and the chart's copies of rules and dashboard
//! are generated: `UPDATE_GOLDENFILES=1 cargo test --test deploy` writes them anew; read the difference. The chart
//! is rendered by helm's own engine and checked against the schemas of Kubernetes, PromQL by a parser: Python
//! packages that `deploy/tools.rs` installs into `target/deploy`. The image is checked by `deploy/check-image`,
//! which is run by hand: it builds a release.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "deploy/generated.rs"]
mod generated;
mod support;
#[path = "deploy/tools.rs"]
mod tools;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::TestServer;

const BINARY: &str = env!("CARGO_BIN_EXE_durahub");

/// A file or folder of the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn durahub(args: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DURAHUB_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

/// Labels by metric, for every metric that the program has.
fn metrics() -> BTreeMap<String, Vec<String>> {
    let texts = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect();
    let mut all: BTreeMap<String, Vec<String>> = durahub::telemetry::metrics::METRICS
        .iter()
        .map(|metric| (metric.name.to_owned(), texts(metric.labels)))
        .collect();
    // The other package's names stand in its one file, and have one label or none.
    let source = std::fs::read_to_string(project("cluster/src/metrics.rs")).unwrap();
    for line in source.lines() {
        let Some((_, rest)) = line.split_once("!(\"durahub_") else { continue };
        let (name, rest) = rest.split_once('"').unwrap();
        let labels =
            if rest.contains("\"partition\" =>") { texts(&["partition"]) } else { texts(&[]) };
        all.entry(format!("durahub_{name}")).or_insert(labels);
    }
    assert!(all.contains_key("durahub_store_size_bytes"), "cluster/src/metrics.rs reads as before");
    all
}

#[test]
fn image_is_built_with_the_toolchain_of_the_project() {
    let read = |path: &str| std::fs::read_to_string(project(path)).unwrap();
    let toolchain: toml::Table = read("rust-toolchain.toml").parse().unwrap();
    let channel = toolchain["toolchain"]["channel"].as_str().unwrap();
    assert!(read("deploy/Dockerfile").contains(&format!("FROM rust:{channel}-")), "not {channel}");
}

#[test]
fn charts_render_to_what_kubernetes_takes() {
    tools::run("chart.py", &[project("deploy/helm/durahub").to_str().unwrap(), BINARY]);
}

#[test]
fn board_and_rules_ask_for_metrics_that_exist() {
    let names = Path::new(env!("CARGO_TARGET_TMPDIR")).join("metrics.json");
    std::fs::write(&names, serde_json::to_string(&metrics()).unwrap()).unwrap();
    tools::run("promql.py", &[project("deploy").to_str().unwrap(), names.to_str().unwrap()]);
}

#[test]
fn compose_file_starts_nodes_that_the_program_takes() {
    tools::run("compose.py", &[project("deploy/compose.yaml").to_str().unwrap(), BINARY]);
}

#[tokio::test]
async fn health_tells_a_container_how_its_node_is() {
    let server = TestServer::start().await;
    let endpoint = format!("http://{}", server.addresses.http);
    let ready = durahub(&["health", "--endpoint", &endpoint]);
    let said = String::from_utf8(ready.stdout).unwrap();
    assert!(ready.status.success() && said.starts_with("ready\n"), "{said}");
    assert!(durahub(&["health", "--live", "--endpoint", &endpoint]).status.success());

    // A node that waits for the rest of its cluster lives, and takes no work.
    let folder = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let http = support::ports::free();
    let mut alone = Command::new(BINARY)
        .current_dir(folder.path())
        .args(["--node-id=1", "--initial-cluster=1=127.0.0.1:1,2=127.0.0.1:2,3=127.0.0.1:3"])
        .args(["--grpc-addr=127.0.0.1:0", "--peer-addr=127.0.0.1:0"])
        .arg(format!("--http-addr={http}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let endpoint = format!("http://{http}");
    let begun = std::time::Instant::now();
    let lives = || durahub(&["health", "--live", "--endpoint", &endpoint]).status.success();
    while !lives() && begun.elapsed().as_secs() < 30 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (live, ready) = (lives(), durahub(&["health", "--endpoint", &endpoint]));
    alone.kill().unwrap();
    alone.wait().unwrap();
    assert!(live);
    let told = String::from_utf8(ready.stderr).unwrap();
    assert_eq!(ready.status.code(), Some(1));
    assert!(told.contains("503") && told.contains("starting"), "{told}");

    let gone = durahub(&["health", "--live", "--endpoint", &endpoint]);
    assert_eq!(gone.status.code(), Some(1));
}
