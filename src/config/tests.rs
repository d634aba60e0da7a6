//! Configuration as a table of cases: who wins, what is refused, and that everything is told at once.

use std::collections::BTreeMap;

use clap::{Args, Command, FromArgMatches};

use super::*;

/// The sources of one case.
#[derive(Default)]
struct Case<'a> {
    file: Option<&'a str>,
    variables: &'a [(&'a str, &'a str)],
    flags: &'a [&'a str],
}

fn load(case: &Case<'_>) -> Result<Config, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("durahub.toml");
    let command = Flags::augment_args(Command::new("durahub").no_binary_name(true));
    let mut flags = Flags::from_arg_matches(&command.get_matches_from(case.flags)).unwrap();
    if let Some(text) = case.file {
        std::fs::write(&path, text).unwrap();
        flags.config = Some(path);
    }
    let variables: BTreeMap<_, _> = case.variables.iter().copied().collect();
    Config::load(&flags, |name| variables.get(name).map(|value| (*value).to_owned()))
}

fn keys(case: &Case<'_>) -> Vec<String> {
    load(case).unwrap_err().problems.into_iter().map(|problem| problem.key).collect()
}

#[test]
fn nothing_given_is_the_default() {
    assert_eq!(load(&Case::default()).unwrap(), Config::default());
}

#[test]
fn a_later_source_wins() {
    let file = "partitions = 2\ntask_hubs = [\"file\"]\nlog_level = \"error\"\n";
    let emulator = [("DTS_TASK_HUB_NAMES", "emulator,b"), ("DTS_EMULATOR_LOG_LEVEL", "Warning")];
    let variables =
        [emulator[0], emulator[1], ("DURAHUB_TASK_HUBS", "variable"), ("DURAHUB_PARTITIONS", "3")];
    let flags = ["--task-hubs", "flag", "--partitions=4"];
    let file = Some(file);
    for (case, partitions, hub, level) in [
        (Case::default(), 8, "default", "info"),
        (Case { file, ..Case::default() }, 2, "file", "error"),
        (Case { file, variables: &emulator, ..Case::default() }, 2, "emulator", "warn"),
        (Case { file, variables: &variables, ..Case::default() }, 3, "variable", "warn"),
        (Case { file, variables: &variables, flags: &flags }, 4, "flag", "warn"),
        (Case { flags: &flags, ..Case::default() }, 4, "flag", "info"),
    ] {
        let config = load(&case).unwrap();
        assert_eq!(
            (config.partitions, config.task_hubs[0].as_str(), config.log_level.as_str()),
            (partitions, hub, level)
        );
    }
}

#[test]
fn variables_of_the_emulator_are_understood() {
    let variables = [
        ("DTS_TASK_HUB_NAMES", "taskhub1, taskhub2"),
        ("DTS_USE_DYNAMIC_TASK_HUBS", "true"),
        ("DTS_EMULATOR_LOG_LEVEL", "Information"),
    ];
    let config = load(&Case { variables: &variables, ..Case::default() }).unwrap();
    assert_eq!(config.task_hubs, ["taskhub1", "taskhub2"]);
    assert!(config.dynamic_task_hubs);
    assert_eq!(config.log_level, "info");
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let variables =
        [("DURAHUB_PARTITIONS", ""), ("DURAHUB_CONFIG", " "), ("DTS_TASK_HUB_NAMES", "")];
    assert_eq!(
        load(&Case { variables: &variables, ..Case::default() }).unwrap(),
        Config::default()
    );
}

#[test]
fn a_switch_needs_no_value_and_can_be_turned_off() {
    let file = Some("ephemeral = true");
    for (flags, ephemeral) in
        [(&[][..], true), (&["--ephemeral"][..], true), (&["--ephemeral=false"][..], false)]
    {
        assert_eq!(load(&Case { file, flags, ..Case::default() }).unwrap().ephemeral, ephemeral);
    }
}

#[test]
fn every_problem_is_told_at_once_with_key_value_and_remedy() {
    let case = Case {
        file: Some(
            "partitons = 8\ncache_mb = 1\n[limits]\nmax_mesage_bytes = 1\nhealth_ping = \"often\"\n",
        ),
        variables: &[("DURAHUB_NODE_ID", "zero"), ("DTS_TASK_HUB_NAMES", "a b")],
        flags: &["--partitions", "129", "--grpc-addr", "localhost"],
    };
    let expected = [
        "limits.max_mesage_bytes",
        "partitons",
        "grpc_addr",
        "node_id",
        "partitions",
        "task_hubs",
        "cache_mb",
        "limits.health_ping",
    ];
    assert_eq!(keys(&case), expected);
    let text = load(&case).unwrap_err().to_string();
    for part in [
        "8 problems",
        "partitions = \"129\" (flag --partitions): allowed is a whole number from 1 to 128",
        "node_id = \"zero\" (variable DURAHUB_NODE_ID)",
        "task_hubs = \"a b\" (variable DTS_TASK_HUB_NAMES)",
        "partitons = \"8\" (file ",
        "unknown key; allowed are data_dir, ",
        "unknown key; allowed are max_message_bytes, ",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for (key, flags) in [
        ("data_dir", ["--data-dir", ""]),
        ("partitions", ["--partitions", "0"]),
        ("node_id", ["--node-id", "0"]),
        ("task_hubs", ["--task-hubs", "a,a"]),
        ("log_level", ["--log-level", "loud"]),
        ("log_format", ["--log-format", "xml"]),
        ("advertise_peer", ["--advertise-peer", "node"]),
        ("initial_cluster", ["--initial-cluster", "1=a"]),
        ("initial_cluster", ["--initial-cluster", "1=a:1,1=b:1"]),
        ("initial_cluster", ["--initial-cluster", "1=a:1,2=a:1"]),
        // The list needs this node's own id.
        ("initial_cluster", ["--initial-cluster", "1=a:1,2=b:1"]),
        ("join", ["--join", "a"]),
        ("zone", ["--zone", "a b"]),
        ("replication_factor", ["--replication-factor", "2"]),
        ("limits.max_message_bytes", ["--max-message-bytes", "1KiB"]),
        ("limits.max_instance_id_length", ["--max-instance-id-length", "0"]),
        ("limits.orchestrator_lease", ["--orchestrator-lease", "0s"]),
        ("limits.activity_lease", ["--activity-lease", "never"]),
        ("limits.drain_timeout", ["--drain-timeout", "2h"]),
        ("http_addr", ["--http-addr", "127.0.0.1:8080"]),
        ("retention.completed", ["--retention-completed", "999ms"]),
        ("retention.failed", ["--retention-failed", "never"]),
        ("retention.terminated", ["--retention-terminated", "11years"]),
        ("cache_mb", ["--cache-mb", "15"]),
        ("memory_budget", ["--memory-budget", "63MiB"]),
        ("storage.low_free", ["--storage-low-free", "a lot"]),
        ("storage.critical_free", ["--storage-critical-free", "0%"]),
    ] {
        assert_eq!(keys(&Case { flags: &flags, ..Case::default() }), [key]);
    }
    // What is refused last cannot come first.
    for (low, critical) in [("1GiB", "2GiB"), ("5%", "6%")] {
        let flags = ["--storage-low-free", low, "--storage-critical-free", critical];
        assert_eq!(keys(&Case { flags: &flags, ..Case::default() }), ["storage.critical_free"]);
    }
    // A value of the wrong kind in a file.
    assert_eq!(
        keys(&Case { file: Some("partitions = [1]\ntask_hubs = {}"), ..Case::default() }),
        ["partitions", "task_hubs"]
    );
    assert_eq!(keys(&Case { file: Some("limits = 5"), ..Case::default() }), ["limits"]);
}

#[test]
fn a_file_must_exist_and_be_toml() {
    let case =
        Case { variables: &[("DURAHUB_CONFIG", "/nowhere/durahub.toml")], ..Case::default() };
    let problems = load(&case).unwrap_err().problems;
    assert_eq!(problems[0].key, "config");
    assert!(problems[0].to_string().contains("/nowhere/durahub.toml"), "{}", problems[0]);

    let problems = load(&Case { file: Some("partitions = 8\nnode_id = \n"), ..Case::default() })
        .unwrap_err()
        .problems;
    assert!(problems[0].remedy.starts_with("line 2 is not valid TOML"), "{}", problems[0]);
}

#[test]
fn what_is_printed_is_read_back_to_the_same() {
    let flags = [
        "--activity-lease=1h 30m",
        "--data-dir=/a\"b",
        "--task-hubs=a,b",
        "--advertise-peer=[::1]:9",
        "--ephemeral",
        "--retention-failed=30d",
        "--memory-budget=1GiB",
        "--storage-low-free=5%",
        "--storage-critical-free=64MiB",
    ];
    let cluster = ["--node-id=2", "--initial-cluster=1=a:1, 2=[::1]:2", "--zone=eu-1/a"];
    let joining = ["--join=a:1,b:2", "--replication-factor=5"];
    for flags in [&[][..], &flags, &cluster, &joining] {
        let config = load(&Case { flags, ..Case::default() }).unwrap();
        assert_eq!(
            load(&Case { file: Some(&config.to_toml()), ..Case::default() }).unwrap(),
            config
        );
    }
}

#[test]
fn names_are_unique_and_none_is_taken_by_kubernetes() {
    let names: Vec<String> = settings::all().map(Setting::flag).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(!names[..i].contains(name), "{name}");
        assert!(name != "port" && !name.starts_with("service"), "{name}");
    }
}

#[test]
fn settings_of_one_table_stand_together() {
    let mut tables: Vec<_> = settings::all().map(Setting::table).collect();
    tables.dedup();
    assert_eq!(
        tables,
        [
            "",
            "storage",
            "limits",
            "retention",
            "tls",
            "peer_tls",
            "auth",
            "auth.jwt",
            "audit",
            "tracing"
        ]
    );
}

#[test]
fn access_is_read_from_nested_tables_and_judged_together() {
    let file = "[tls]\ncert_file = 'c'\nkey_file = 'k'\n[auth]\nmode = ['token', 'jwt']\n\
        tokens_file = 't'\ngrants = ['ci=admin@*', 'claim.roles:ops=worker@a']\n\
        [auth.jwt]\njwks_url = 'https://a/b'\nissuer = 'i'\naudience = ['x']\n";
    let config = load(&Case { file: Some(file), ..Case::default() }).unwrap();
    assert_eq!(config.auth.mode, [AuthMode::Token, AuthMode::Jwt]);
    assert_eq!(config.auth.jwt.jwks_url.as_deref(), Some("https://a/b"));
    let printed = config.to_toml();
    assert_eq!(load(&Case { file: Some(&printed), ..Case::default() }).unwrap(), config);

    for (expected, flags) in [
        (&["tls.key_file"][..], &["--tls-cert-file=c"][..]),
        (&["peer_tls.key_file", "peer_tls.ca_file"], &["--peer-tls-cert-file=c"]),
        (&["auth.mode"], &["--auth-mode=certificate"]),
        (&["auth.tokens_file"], &["--auth-mode=token"]),
        (&["auth.jwt.jwks_file", "auth.jwt.issuer", "auth.jwt.audience"], &["--auth-mode=jwt"]),
        (&["auth.mode"], &["--auth-mode=none,token"]),
        (&["auth.grants"], &["--auth-grants=ci=owner@a"]),
        (&["auth.jwt.jwks_url"], &["--auth-jwt-jwks-url=http://example.com/keys"]),
    ] {
        assert_eq!(keys(&Case { flags, ..Case::default() }), expected, "{flags:?}");
    }
    let typo = "[auth.jwt]\nissuers = 'i'\n[auth]\nmodes = 'jwt'\n";
    assert_eq!(
        keys(&Case { file: Some(typo), ..Case::default() }),
        ["auth.jwt.issuers", "auth.modes"]
    );
}

#[test]
fn a_collector_is_named_by_our_keys_or_by_those_of_opentelemetry() {
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317"),
        ("OTEL_SERVICE_NAME", "dh"),
        ("OTEL_RESOURCE_ATTRIBUTES", "zone=a, x.y=1=2"),
    ];
    let tracing = load(&Case { variables: &variables, ..Case::default() }).unwrap().tracing;
    assert_eq!(tracing.endpoint.as_deref(), Some("http://a:4317"));
    let attributes: Vec<_> = tracing.resource_attributes.iter().collect();
    let text = |text: &str| text.to_owned();
    assert_eq!(attributes, [(&text("x.y"), &text("1=2")), (&text("zone"), &text("a"))]);
    let flags = ["--tracing-endpoint=https://b", "--tracing-sampling-ratio=0.25"];
    let config = load(&Case { variables: &variables, flags: &flags, ..Case::default() }).unwrap();
    assert_eq!(config.tracing.endpoint.as_deref(), Some("https://b"));
    assert!((config.tracing.sampling_ratio.as_f64() - 0.25).abs() < 1e-9);
    let printed = config.to_toml();
    assert_eq!(load(&Case { file: Some(&printed), ..Case::default() }).unwrap(), config);
    for (key, flag) in [
        ("tracing.endpoint", "--tracing-endpoint=collector:4317"),
        ("tracing.endpoint", "--tracing-endpoint=http://a/v1/traces"),
        ("tracing.sampling_ratio", "--tracing-sampling-ratio=1.5"),
        ("tracing.sampling_ratio", "--tracing-sampling-ratio=NaN"),
        ("tracing.resource_attributes", "--tracing-resource-attributes=a=1,a=2"),
        ("tracing.service_name", "--tracing-service-name="),
    ] {
        assert_eq!(keys(&Case { flags: &[flag], ..Case::default() }), [key], "{flag}");
    }
}

/// They are set for whole machines; who asks for no traces here is not stopped by them.
#[test]
fn variables_of_opentelemetry_are_judged_where_there_is_a_collector() {
    let name = ("OTEL_RESOURCE_ATTRIBUTES", "broken");
    let config = load(&Case { variables: &[name], ..Case::default() }).unwrap();
    assert_eq!((config.unused.len(), config.tracing.clone()), (1, Tracing::default()));
    assert!(config.unused[0].to_string().contains("OTEL_RESOURCE_ATTRIBUTES"), "it is told");
    let elsewhere = ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317");
    let config = load(&Case { variables: &[elsewhere, name], ..Case::default() }).unwrap();
    assert_eq!((config.unused.len(), config.tracing), (2, Tracing::default()));

    let here = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
    let flags = ["--tracing-endpoint=http://collector:4317", "--partitions=0"];
    for (case, expected) in [
        (
            Case { variables: &[here, name], ..Case::default() },
            &["tracing.resource_attributes"][..],
        ),
        (
            Case { variables: &[elsewhere, name], flags: &flags, ..Case::default() },
            &["partitions", "tracing.resource_attributes"],
        ),
        (
            Case {
                file: Some("[tracing]\nendpoint = 'http://a'\n"),
                variables: &[name],
                ..Case::default()
            },
            &["tracing.resource_attributes"],
        ),
    ] {
        assert_eq!(keys(&case), expected);
    }
    // Our own are judged in any case.
    let own = [("DURAHUB_TRACING_RESOURCE_ATTRIBUTES", "broken")];
    assert_eq!(keys(&Case { variables: &own, ..Case::default() }), ["tracing.resource_attributes"]);
}

#[test]
fn what_a_running_node_takes_over_is_told_apart() {
    let known: Vec<_> = settings::all().map(|setting| setting.key).collect();
    assert!(RELOADED.iter().all(|key| known.contains(key)));
    let flags =
        ["--log-level=debug", "--hub-calls-per-second=5", "--cache-mb=64", "--auth-mode=none"];
    let newer = load(&Case { flags: &flags, ..Case::default() }).unwrap();
    assert_eq!(Config::default().waiting(&newer), ["cache_mb"]);
}
