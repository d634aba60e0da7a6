//! Files of `deploy/` that are made from others, and must not be older than those.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::{durahub, project};

/// Settings that the chart sets itself, from other values and from the names of pods.
const OF_THE_CHART: &[&str] = &[
    "data_dir",
    "ephemeral",
    "grpc_addr",
    "http_addr",
    "peer_addr",
    "advertise_peer",
    "node_id",
    "initial_cluster",
    "join",
    "zone",
    "replication_factor",
    "partitions",
    "limits.drain_timeout",
    "tls.cert_file",
    "tls.key_file",
    "tls.client_ca_file",
    "peer_tls.cert_file",
    "peer_tls.key_file",
    "peer_tls.ca_file",
    "auth.tokens_file",
    "auth.grants_file",
    "auth.jwt.jwks_file",
    "auth.jwt.jwks_ca_file",
];

/// Compares a file with what it must be, or writes it when `UPDATE_GOLDENFILES=1`.
fn check(path: &str, wanted: &str) {
    let path: PathBuf = project(path);
    if std::env::var_os("UPDATE_GOLDENFILES").is_some_and(|value| value == "1") {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let line = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{} is stale (from line {}): UPDATE_GOLDENFILES=1 cargo test --test deploy writes it anew",
        path.display(),
        line.unwrap_or_else(|| found.lines().count().min(wanted.lines().count())) + 1,
    );
}

fn reference() -> String {
    let output = durahub(&["config", "reference"]);
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn configuration_reference_is_that_of_the_program() {
    check("deploy/durahub.toml", &reference());
}

#[test]
fn chart_carries_the_rules_and_the_board() {
    for (source, copy) in
        [("prometheus/rules.yaml", "rules.yaml"), ("grafana/durahub.json", "dashboard.json")]
    {
        let source = std::fs::read_to_string(project("deploy").join(source)).unwrap();
        check(&format!("deploy/helm/durahub/files/{copy}"), &source);
    }
}

#[test]
fn chart_takes_every_setting_and_no_other() {
    let path = "deploy/helm/durahub/values.schema.json";
    let text = std::fs::read_to_string(project(path)).unwrap();
    let mut schema: Value = serde_json::from_str(&text).unwrap();
    schema["properties"]["config"] = settings(&reference());
    check(path, &format!("{}\n", serde_json::to_string_pretty(&schema).unwrap()));
}

/// The schema of all settings that may be given to the chart, from the reference and its comments.
fn settings(reference: &str) -> Value {
    let values: toml::Table = reference.parse().unwrap();
    let mut root = table();
    let (mut path, mut help, mut seen) = (String::new(), String::new(), Vec::new());
    for line in reference.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            path = format!("{name}.");
        } else if let Some(comment) = line.strip_prefix("# ") {
            if !comment.starts_with("--") {
                help = format!("{help} {comment}");
            }
        } else if let Some((name, _)) = line.split_once(" = ") {
            let key = format!("{path}{name}");
            if !OF_THE_CHART.contains(&key.as_str()) {
                let found = key.split('.').fold(None, |at: Option<&toml::Value>, part| match at {
                    None => values.get(part),
                    Some(at) => at.get(part),
                });
                put(&mut root, &key, kind(found.unwrap(), help.trim()));
            }
            seen.push(key);
        }
        if !line.starts_with("# ") {
            help.clear();
        }
    }
    for own in OF_THE_CHART {
        assert!(seen.iter().any(|key| key == own), "there is no setting {own}");
    }
    root
}

fn table() -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": {}})
}

fn kind(default: &toml::Value, help: &str) -> Value {
    match default {
        toml::Value::Boolean(_) => json!({"type": "boolean", "description": help}),
        toml::Value::Float(_) => json!({"type": "number", "description": help}),
        toml::Value::Integer(_) => json!({"type": "integer", "description": help}),
        toml::Value::Array(_) => {
            json!({"type": "array", "items": {"type": "string"}, "description": help})
        }
        _ => json!({"type": "string", "description": help}),
    }
}

fn put(root: &mut Value, key: &str, setting: Value) {
    let parts: Vec<_> = key.split('.').collect();
    let mut at = root;
    for (depth, part) in parts.iter().enumerate() {
        let properties: &mut Map<String, Value> = at["properties"].as_object_mut().unwrap();
        let last = depth + 1 == parts.len();
        at =
            properties.entry(*part).or_insert_with(|| if last { setting.clone() } else { table() });
    }
}
