//! Keeps the map true: reads all sources and fails when a room names what it must not, or a file is untidy.
//!
//! The table stands in `architecture/rooms.rs`, the manners in `architecture/tidy.rs`. The tests below also
//! hold bad samples against both, since a check that cannot fail checks nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "architecture/rooms.rs"]
mod rooms;
#[path = "architecture/source.rs"]
mod source;
#[path = "architecture/tidy.rs"]
mod tidy;

use std::path::PathBuf;

use source::Source;

/// The project. Cargo sets the variable; setting it by hand points a compiled check at another checkout.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// All `.rs` files of the project, as path from the root and text.
fn files() -> Vec<(String, String)> {
    let root = root();
    let mut folders: Vec<PathBuf> =
        ["src", "tests", "benches", "proto", "cluster"].iter().map(|f| root.join(f)).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.extend((entry.file_name() != "target").then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// Every crate that the workspace depends on, as code spells it.
fn crates() -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    manifest["workspace"]["dependencies"]
        .as_table()
        .unwrap()
        .keys()
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn assert_none(violations: Vec<String>) {
    assert!(
        violations.is_empty(),
        "\n{} violations:\n  {}\n",
        violations.len(),
        violations.join("\n  ")
    );
}

#[test]
fn no_room_names_what_it_must_not() {
    let crates = crates();
    let files = files();
    assert!(files.iter().any(|(path, _)| path == "src/lib.rs"));
    let sources: Vec<_> = files.iter().map(|(path, text)| (path, Source::read(text))).collect();
    let tests: Vec<_> =
        sources.iter().flat_map(|(path, source)| rooms::test_places(path, source)).collect();
    let is_test =
        |path: &str| tests.iter().any(|p| path == p || p.ends_with('/') && path.starts_with(p));
    let checked = sources.iter().filter(|(path, _)| !is_test(path));
    assert_none(
        checked.flat_map(|(path, source)| rooms::violations(path, source, &crates)).collect(),
    );
}

#[test]
fn every_file_is_tidy() {
    let files = files();
    let mut all: Vec<_> = files
        .iter()
        .flat_map(|(path, text)| tidy::violations(path, text, &Source::read(text)))
        .collect();
    all.extend(tidy::folder_violations(&files));
    assert_none(all);
}

/// The rooms' verdict on a sample.
fn verdict(path: &str, text: &str) -> Vec<String> {
    rooms::violations(path, &Source::read(text), &crates())
}

#[test]
fn samples_that_name_too_much_are_found() {
    for (path, text, found) in [
        ("src/engine/a.rs", "use std::collections::HashMap;", "HashMap"),
        (
            "src/engine/a.rs",
            "use std::{fmt, collections::{BTreeMap, hash_map::HashMap as Map}};",
            "HashMap",
        ),
        (
            "src/engine/a.rs",
            "fn f() { let x = tokio::time::Instant::now(); }",
            "tokio::time::Instant::now",
        ),
        ("src/engine/a.rs", "async fn f() {}", "async"),
        ("src/engine/a.rs", "use crate::{engine::View, clock};", "crate::clock"),
        (
            "src/engine/a/b.rs",
            "use super::super::super::dispatch::Queue;",
            "crate::dispatch::Queue",
        ),
        ("src/engine/mod.rs", "use super::*;", "crate::*"),
        ("src/engine/a.rs", "use durahub_cluster::GroupId;", "durahub_cluster::GroupId"),
        ("src/engine/a.rs", "tracing::info!(\"x\");", "tracing::info"),
        (
            "src/engine/a.rs",
            "const X: &str = std::env!(\"x\"); fn f() { std::fs::read(p); }",
            "std::fs::read",
        ),
        (
            "src/engine/a.rs",
            "use durahub_proto::wire::task_hub_sidecar_service_server as s;",
            "_service_server",
        ),
        ("src/machine.rs", "use crate::dispatch;", "crate::dispatch"),
        ("src/machine.rs", "use openraft::Raft;", "openraft::Raft"),
        ("src/dispatch/a.rs", "use crate::gateway::Work;", "crate::gateway::Work"),
        ("src/dispatch/a.rs", "fn f() -> tonic::Status {}", "tonic::Status"),
        ("src/dispatch/a.rs", "let now = std::time::SystemTime::now();", "SystemTime"),
        ("src/gateway/a.rs", "use sled;", "sled"),
        ("src/gateway/a.rs", "use crate::server::run;", "crate::server::run"),
        ("src/gateway/a.rs", "impl Machine for Mine {}", "the seam is src/machine.rs"),
        ("src/dashboard/a.rs", "use crate::gateway::streams;", "crate::gateway::streams"),
        ("src/telemetry/logs.rs", "use crate::config::Config;", "crate::config::Config"),
        ("src/config/mod.rs", "use durahub_proto::wire;", "durahub_proto::wire"),
        ("src/clock.rs", "use crate::telemetry;", "crate::telemetry"),
        ("src/bench/run.rs", "use crate::config::Config;", "crate::config::Config"),
        ("src/bench/run.rs", "use durahub_cluster::Node;", "durahub_cluster::Node"),
        ("src/http.rs", "use crate::server;", "crate::server"),
        ("src/server.rs", "extern crate sled;", "sled"),
        ("src/novelty.rs", "", "no row"),
        ("cluster/src/node.rs", "use openraft::Raft;", "openraft::Raft"),
        ("cluster/src/node.rs", "fn f(db: sled::Db) {}", "sled::Db"),
        ("cluster/src/raft/log.rs", "use sled::Tree;", "sled::Tree"),
        ("cluster/src/store/sled.rs", "use openraft::LogId;", "openraft::LogId"),
        ("cluster/src/node.rs", "use durahub_proto::{peer, wire};", "durahub_proto::wire"),
        ("cluster/src/node.rs", "use durahub::engine;", "durahub::engine"),
        ("proto/src/lib.rs", "use durahub_cluster::Node;", "durahub_cluster::Node"),
    ] {
        let verdict = verdict(path, text);
        assert!(verdict.iter().any(|line| line.contains(found)), "{path}: {text}\n{verdict:?}");
    }
}

#[test]
fn samples_that_are_fine_pass() {
    for (path, text) in [
        (
            "src/engine/a.rs",
            "use std::collections::BTreeMap; use super::state::{self, Keys}; use crate::engine::View;",
        ),
        (
            "src/engine/a.rs",
            "// a HashMap, tokio::spawn\n/* crate::server /* nested */ async */ const S: &str = \"HashMap\";",
        ),
        (
            "src/engine/a.rs",
            "const S: &str = r#\"say \"tokio::spawn\" \"#; const C: char = '\"'; fn f<'async_>() {}",
        ),
        (
            "src/engine/a.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests { use tokio::time; #[test] fn t() { let m = HashMap::new(); } }",
        ),
        ("src/engine/a.rs", "#[cfg(test)]\nuse std::fs::File;\nfn f() {}"),
        ("src/engine/tests.rs", "use goldenscript::Command; use crate::server;"),
        (
            "src/machine.rs",
            "use crate::engine; use durahub_cluster::machine::Machine; impl Machine for Engine {}",
        ),
        ("src/gateway/a.rs", "use crate::{dispatch::Handle, engine::Command}; use tonic::Status;"),
        (
            "src/dispatch/a.rs",
            "use crate::clock::Clock; use super::queue::Queue; tokio::spawn(f());",
        ),
        (
            "src/bench/a.rs",
            "use durahub_proto::wire::task_hub_sidecar_service_client as c; use crate::bench::Args;",
        ),
        ("src/server.rs", "use crate::{gateway, dispatch, machine}; use durahub_cluster::Node;"),
        ("src/main.rs", "fn main() { durahub::cli::main() }"),
        (
            "cluster/src/raft/a.rs",
            "use openraft::Raft; use crate::store::Store; use durahub_proto::peer::Append;",
        ),
        ("cluster/src/store/a.rs", "use sled::Db;"),
        ("cluster/tests/suite.rs", "use openraft::testing::log::Suite; use sled::Db;"),
    ] {
        assert_eq!(verdict(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn modules_for_tests_are_known_by_their_declaration() {
    let text = "mod a;\n#[cfg(test)]\nmod scripts;\n#[cfg(test)]\nmod tests { fn f() {} }";
    let source = Source::read(text);
    let places = ["src/engine/scripts.rs", "src/engine/scripts/"];
    assert_eq!(rooms::test_places("src/engine/mod.rs", &source), places);
    assert_eq!(rooms::test_places("src/clock.rs", &source)[0], "src/clock/scripts.rs");
}

#[test]
fn untidy_samples_are_found() {
    let verdict = |text: &str| tidy::violations("a.rs", text, &Source::read(text));
    assert_eq!(verdict("//! Story.\n\nfn f() { let todo = \"todo!()\"; }"), Vec::<String>::new());
    for (text, found) in [
        ("fn f() {}".to_owned(), "story"),
        ("".to_owned(), "story"),
        ("/// Not a module doc.\nfn f() {}".to_owned(), "story"),
        ("//! S.\nfn f() { todo!() }".to_owned(), ":2: todo!"),
        ("//! S.\n#[cfg(test)]\nmod tests { fn f() { dbg!(1); } }".to_owned(), ":3: dbg!"),
        ("//! S.\n// FIXME later".to_owned(), "FIXME"),
        (format!("//! S.\n{}", "\n".repeat(tidy::LONGEST_FILE)), "801 lines"),
    ] {
        assert!(verdict(&text).iter().any(|line| line.contains(found)), "{found} in {text:?}");
    }

    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let story = "//! Story.\n";
    let good = [
        file("src/lib.rs", story),
        file("src/a/mod.rs", story),
        file("src/a/b.rs", ""),
        file("tests/x/y.rs", ""),
    ];
    assert_eq!(tidy::folder_violations(&good), Vec::<String>::new());
    let bad =
        [file("src/lib.rs", story), file("src/a/mod.rs", "mod b;"), file("cluster/src/b/c.rs", "")];
    assert_eq!(tidy::folder_violations(&bad).len(), 2);
}

#[test]
fn lines_are_told_as_they_are_in_the_file() {
    let text = "//! S.\n/* two\nlines */\nconst S: &str = \"a\nb\\\nc\";\nconst R: &str = r\"\n\";\nuse sled::Db;\n";
    assert_eq!(
        verdict("src/gateway/a.rs", text),
        ["src/gateway/a.rs:9: gateway must not name sled::Db"]
    );
}
