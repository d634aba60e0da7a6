//! The table of settings: one row per key, and everything that is true of a key in one place.
//!
//! A key is a TOML key, a flag (`--data-dir`) and a variable (`DURAHUB_DATA_DIR`); the three names follow
//! from the key, so they cannot drift apart. Help text, the sentence about what is allowed, and the way
//! from text to [`Config`] and back stand in the row. A new setting is a field in [`Config`] and a row here,
//! or in [`access_settings`](super::access_settings) if it is about who may connect and do what, or in
//! [`traces`](super::traces).
//!
//! No key may be called `port` or start with `service`: Kubernetes sets `DURAHUB_PORT` and
//! `DURAHUB_SERVICE_…` in every pod beside a Service named `durahub`. For the same reason an unknown
//! `DURAHUB_*` variable is not an error, as an unknown TOML key is.

use std::time::Duration;

use super::values::{self, Value};
use super::{Config, LogFormat, RELOADED};

/// One setting.
pub(super) struct Setting {
    /// Name in a TOML file; a dot stands for a table.
    pub(super) key: &'static str,
    /// Placeholder for the value in the help text.
    pub(super) value_name: &'static str,
    /// One or more sentences for the help text and the configuration reference.
    pub(super) help: &'static str,
    /// What a value may be, to end the sentence "allowed is …".
    pub(super) allowed: &'static str,
    /// Variable of the managed service's emulator, or of OpenTelemetry, that gives the same thing.
    pub(super) emulator: Option<&'static str>,
    /// Puts a value into the configuration; `None` when the value is not allowed.
    pub(super) set: fn(&mut Config, &Value) -> Option<()>,
    /// The value in a configuration, as TOML.
    pub(super) show: fn(&Config) -> String,
}

impl Setting {
    /// The key without its table: `drain_timeout` for `limits.drain_timeout`.
    pub(super) fn name(&self) -> &'static str {
        self.key.rsplit_once('.').map_or(self.key, |(_, name)| name)
    }

    /// The table of the key: `auth.jwt` for `auth.jwt.issuer`; empty at the top.
    pub(super) fn table(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(table, _)| table)
    }

    /// What it means, and whether a running node takes it over.
    pub(super) fn text(&self) -> String {
        let taken_over = match RELOADED.contains(&self.key) {
            true => " Applied to a running node when the file changes.",
            false => "",
        };
        format!("{}{taken_over}", self.help)
    }

    /// Name of the flag, without dashes in front. The limits go without their table.
    pub(super) fn flag(&self) -> String {
        self.key.strip_prefix("limits.").unwrap_or(self.key).replace(['_', '.'], "-")
    }

    /// Name of the variable.
    pub(super) fn variable(&self) -> String {
        format!("DURAHUB_{}", self.flag().replace('-', "_").to_ascii_uppercase())
    }

    /// A switch can be given without a value.
    pub(super) fn is_switch(&self) -> bool {
        self.value_name == "BOOL"
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Every setting, in the order of the help text and of the configuration reference.
pub(super) fn all() -> impl Iterator<Item = &'static Setting> + Clone {
    SETTINGS.iter().chain(super::access_settings::SETTINGS).chain(super::traces::SETTINGS)
}

const SPACE_ALLOWED: &str = "auto, a size from 0 to 1024GiB, or a share from 1% to 90%; 0 is never";
const RETENTION_ALLOWED: &str = "off, or a time from 1s to 10years, such as 12h or 30d";

const SETTINGS: &[Setting] = &[
    Setting {
        key: "data_dir",
        value_name: "DIR",
        help: "Folder that holds the log and the state of this node. Created when missing; one process at a time.",
        allowed: "the path of a folder",
        emulator: None,
        set: |c, v| put(&mut c.data_dir, v.text().filter(|dir| !dir.is_empty()).map(Into::into)),
        show: |c| quoted(&c.data_dir.display().to_string()),
    },
    Setting {
        key: "ephemeral",
        value_name: "BOOL",
        help: "Keep everything in memory and nothing on disk: all data is gone when the process ends.",
        allowed: "true or false",
        emulator: None,
        set: |c, v| put(&mut c.ephemeral, values::flag(v)),
        show: |c| c.ephemeral.to_string(),
    },
    Setting {
        key: "grpc_addr",
        value_name: "IP:PORT",
        help: "Address for SDK clients and workers (gRPC). Port 0 picks a free port.",
        allowed: "IP:PORT, such as 127.0.0.1:8080 or 0.0.0.0:8080",
        emulator: None,
        set: |c, v| put(&mut c.grpc_addr, values::address(v)),
        show: |c| quoted(&c.grpc_addr.to_string()),
    },
    Setting {
        key: "http_addr",
        value_name: "IP:PORT",
        help: "Address for people and probes (HTTP): status page, /metrics, /livez, /readyz, /health. Port 0 picks a free port.",
        allowed: "IP:PORT, such as 127.0.0.1:8082 or 0.0.0.0:8082",
        emulator: None,
        set: |c, v| put(&mut c.http_addr, values::address(v)),
        show: |c| quoted(&c.http_addr.to_string()),
    },
    Setting {
        key: "peer_addr",
        value_name: "IP:PORT",
        help: "Address for the other nodes of the cluster. Port 0 picks a free port.",
        allowed: "IP:PORT, such as 127.0.0.1:8083 or 0.0.0.0:8083",
        emulator: None,
        set: |c, v| put(&mut c.peer_addr, values::address(v)),
        show: |c| quoted(&c.peer_addr.to_string()),
    },
    Setting {
        key: "advertise_peer",
        value_name: "HOST:PORT",
        help: "Address under which the other nodes reach this one. Empty: the peer address itself.",
        allowed: "HOST:PORT with a port from 1 to 65535, or empty",
        emulator: None,
        set: |c, v| {
            let none = v.text() == Some("");
            put(
                &mut c.advertise_peer,
                if none { Some(None) } else { values::host_and_port(v).map(Some) },
            )
        },
        show: |c| quoted(c.advertise_peer.as_deref().unwrap_or_default()),
    },
    Setting {
        key: "node_id",
        value_name: "N",
        help: "Number of this node, unique in its cluster and never used again. auto: that of the data folder; for a new one, the cluster that is joined chooses, and a node alone is 1.",
        allowed: "auto, or a whole number from 1 to 9007199254740991",
        emulator: None,
        // Numbers above 2^53 would be rounded by every JSON reader that looks at a status page.
        set: |c, v| {
            let auto = v.text() == Some("auto");
            let id = if auto { Some(None) } else { values::whole(v, 1..=(1 << 53) - 1).map(Some) };
            put(&mut c.node_id, id)
        },
        show: |c| c.node_id.map_or_else(|| quoted("auto"), |id| id.to_string()),
    },
    Setting {
        key: "initial_cluster",
        value_name: "NODES",
        help: "All nodes of a cluster that starts for the first time, as 1=HOST:PORT,2=HOST:PORT: the same list on each of them, needs --node-id. Later starts may repeat it. Empty: a cluster of one.",
        allowed: "a list of ID=HOST:PORT with different ids and addresses, or empty",
        emulator: None,
        set: |c, v| put(&mut c.initial_cluster, values::cluster_members(v)),
        show: |c| {
            let nodes = c.initial_cluster.iter().map(|(id, at)| quoted(&format!("{id}={at}")));
            format!("[{}]", nodes.collect::<Vec<_>>().join(", "))
        },
    },
    Setting {
        key: "join",
        value_name: "HOST:PORT",
        help: "Peer addresses of nodes of a running cluster, comma separated: a node with a new data folder joins it. Later starts may repeat it.",
        allowed: "a list of HOST:PORT, or empty",
        emulator: None,
        set: |c, v| put(&mut c.join, values::addresses(v)),
        show: |c| {
            format!("[{}]", c.join.iter().map(|at| quoted(at)).collect::<Vec<_>>().join(", "))
        },
    },
    Setting {
        key: "zone",
        value_name: "NAME",
        help: "Failure domain of this node, such as a rack or an availability zone. Replicas are spread over zones.",
        allowed: "up to 64 characters A-Z a-z 0-9 - _ . /, or empty",
        emulator: None,
        set: |c, v| put(&mut c.zone, values::zone(v)),
        show: |c| quoted(&c.zone),
    },
    Setting {
        key: "replication_factor",
        value_name: "N",
        help: "Votes per partition, as far as there are nodes. Fixed when the cluster first starts.",
        allowed: "an odd number from 1 to 7",
        emulator: None,
        set: |c, v| {
            let factor = values::whole(v, 1..=7).filter(|factor| factor % 2 == 1);
            put(&mut c.replication_factor, factor.map(|factor| factor as u32))
        },
        show: |c| c.replication_factor.to_string(),
    },
    Setting {
        key: "partitions",
        value_name: "N",
        help: "Number of partitions, each a Raft group of its own. Fixed when a data folder is first used.",
        allowed: "a whole number from 1 to 128",
        emulator: None,
        set: |c, v| put(&mut c.partitions, values::whole(v, 1..=128).map(|n| n as u32)),
        show: |c| c.partitions.to_string(),
    },
    Setting {
        key: "task_hubs",
        value_name: "NAMES",
        help: "Task hubs to create at start, comma separated. Hubs that exist stay, whether listed or not.",
        allowed: "a list of different names of 1 to 64 characters A-Z a-z 0-9 - _",
        emulator: Some("DTS_TASK_HUB_NAMES"),
        set: |c, v| put(&mut c.task_hubs, values::hub_names(v)),
        show: |c| {
            format!(
                "[{}]",
                c.task_hubs.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
            )
        },
    },
    Setting {
        key: "dynamic_task_hubs",
        value_name: "BOOL",
        help: "Create a task hub when its name is first used, instead of answering NOT_FOUND.",
        allowed: "true or false",
        emulator: Some("DTS_USE_DYNAMIC_TASK_HUBS"),
        set: |c, v| put(&mut c.dynamic_task_hubs, values::flag(v)),
        show: |c| c.dynamic_task_hubs.to_string(),
    },
    Setting {
        key: "task_hub_calls",
        value_name: "BOOL",
        help: "Let clients create and delete task hubs (CreateTaskHub, DeleteTaskHub) instead of answering PERMISSION_DENIED.",
        allowed: "true or false",
        emulator: None,
        set: |c, v| put(&mut c.task_hub_calls, values::flag(v)),
        show: |c| c.task_hub_calls.to_string(),
    },
    Setting {
        key: "log_level",
        value_name: "FILTER",
        help: "What is logged: off, error, warn, info, debug or trace, or a list such as info,durahub::dispatch=debug.",
        allowed: "off, error, warn, info, debug, trace, or a comma-separated list of these and target=level",
        emulator: Some("DTS_EMULATOR_LOG_LEVEL"),
        set: |c, v| put(&mut c.log_level, values::log_filter(v)),
        show: |c| quoted(&c.log_level),
    },
    Setting {
        key: "log_format",
        value_name: "FORMAT",
        help: "How a log line looks: text, json (one object per line), or auto (text on a terminal, otherwise json).",
        allowed: "auto, text or json",
        emulator: None,
        set: |c, v| {
            let format = match v.text()? {
                "auto" => LogFormat::Auto,
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return None,
            };
            put(&mut c.log_format, Some(format))
        },
        show: |c| {
            quoted(match c.log_format {
                LogFormat::Auto => "auto",
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            })
        },
    },
    Setting {
        key: "cache_mb",
        value_name: "MIB",
        help: "Memory for the storage cache of this node, in MiB. The process needs more than this in total. 0: a sixteenth of the memory budget, but not less than 16 and not more than 128.",
        allowed: "0, or a whole number from 16 to 65536",
        emulator: None,
        set: |c, v| {
            let cache = values::whole(v, 0..=65_536).filter(|cache| *cache == 0 || *cache >= 16);
            put(&mut c.cache_mb, cache)
        },
        show: |c| c.cache_mb.to_string(),
    },
    Setting {
        key: "memory_budget",
        value_name: "BYTES",
        help: "Memory that this process may have. When less than a tenth of it is left, nothing new is begun: starts, restarts, rewinds and new task hubs are answered with RESOURCE_EXHAUSTED and when to ask again, until there is more. auto: the limit of its cgroup (container), or else what the machine has.",
        allowed: "auto, or a size from 64MiB to 1024GiB",
        emulator: None,
        set: |c, v| {
            let budget = values::auto_bytes(v, 64 << 20..=1 << 40);
            put(&mut c.memory_budget, budget.map(|bytes| bytes.map(|bytes| bytes as u64)))
        },
        show: |c| values::show_auto_bytes(c.memory_budget.map(|bytes| bytes as usize)),
    },
    Setting {
        key: "snapshot_every",
        value_name: "N",
        help: "Entries after which the log of a partition is compacted. A fifth of them is kept for replicas that are a little behind; one that lacks more is sent a snapshot.",
        allowed: "a whole number from 100 to 10000000",
        emulator: None,
        set: |c, v| put(&mut c.snapshot_every, values::whole(v, 100..=10_000_000)),
        show: |c| c.snapshot_every.to_string(),
    },
    Setting {
        key: "storage.low_free",
        value_name: "SPACE",
        help: "Free space on the disk of the data folder below which nothing new is begun: starts, restarts, rewinds and new task hubs are answered with RESOURCE_EXHAUSTED and when to ask again; what runs goes on. It ends by itself when a fifth more is free. auto: 512MiB, or a tenth of the disk if that is less. Each node watches its own disk, and judges for the partitions that it leads.",
        allowed: SPACE_ALLOWED,
        emulator: None,
        set: |c, v| put(&mut c.storage.low_free, values::free_space(v)),
        show: |c| values::show_free_space(c.storage.low_free),
    },
    Setting {
        key: "storage.critical_free",
        value_name: "SPACE",
        help: "Free space on the disk of the data folder below which nothing grows: events, signals and resumes are refused as well, no work is handed out and no timer fires; what workers have is still taken in, and reading, ending and removing go on. A node of a cluster hands its partitions to nodes with more. auto: 128MiB, or a twenty-fifth of the disk if that is less.",
        allowed: SPACE_ALLOWED,
        emulator: None,
        set: |c, v| put(&mut c.storage.critical_free, values::free_space(v)),
        show: |c| values::show_free_space(c.storage.critical_free),
    },
    Setting {
        key: "limits.max_message_bytes",
        value_name: "BYTES",
        help: "Largest gRPC message that is taken, payloads included. Plain bytes or with KiB, MiB, GiB.",
        allowed: "a size from 64KiB to 1GiB",
        emulator: None,
        set: |c, v| put(&mut c.limits.max_message_bytes, values::bytes(v, 64 << 10..=1 << 30)),
        show: |c| quoted(&values::show_bytes(c.limits.max_message_bytes)),
    },
    Setting {
        key: "limits.max_instance_id_length",
        value_name: "N",
        help: "Longest instance id that is taken, in characters. The managed service takes 100.",
        allowed: "a whole number from 1 to 1000",
        emulator: None,
        set: |c, v| {
            put(
                &mut c.limits.max_instance_id_length,
                values::whole(v, 1..=1000).map(|n| n as usize),
            )
        },
        show: |c| c.limits.max_instance_id_length.to_string(),
    },
    Setting {
        key: "limits.max_payload_bytes",
        value_name: "BYTES",
        help: "Longest payload: input, output, result, event data, reason. The managed service takes 1MiB.",
        allowed: "a size from 1KiB to 1GiB",
        emulator: None,
        set: |c, v| put(&mut c.limits.max_payload_bytes, values::bytes(v, 1 << 10..=1 << 30)),
        show: |c| quoted(&values::show_bytes(c.limits.max_payload_bytes)),
    },
    Setting {
        key: "limits.max_custom_status_bytes",
        value_name: "BYTES",
        help: "Longest custom status of an orchestration.",
        allowed: "a size from 1KiB to 1GiB",
        emulator: None,
        set: |c, v| put(&mut c.limits.max_custom_status_bytes, values::bytes(v, 1 << 10..=1 << 30)),
        show: |c| quoted(&values::show_bytes(c.limits.max_custom_status_bytes)),
    },
    Setting {
        key: "limits.max_name_length",
        value_name: "N",
        help: "Longest name or version of an orchestration, activity or event, in characters.",
        allowed: "a whole number from 1 to 10000",
        emulator: None,
        set: |c, v| {
            put(&mut c.limits.max_name_length, values::whole(v, 1..=10_000).map(|n| n as usize))
        },
        show: |c| c.limits.max_name_length.to_string(),
    },
    Setting {
        key: "limits.max_tags_bytes",
        value_name: "BYTES",
        help: "Longest keys and values of all tags of one orchestration or activity together.",
        allowed: "a size from 1KiB to 1MiB",
        emulator: None,
        set: |c, v| put(&mut c.limits.max_tags_bytes, values::bytes(v, 1 << 10..=1 << 20)),
        show: |c| quoted(&values::show_bytes(c.limits.max_tags_bytes)),
    },
    Setting {
        key: "limits.max_history_events",
        value_name: "N",
        help: "Most events in the history of one orchestration until it continues as new. One that needs more fails.",
        allowed: "a whole number from 0 to 1000000000; 0 is no limit",
        emulator: None,
        set: |c, v| put(&mut c.limits.max_history_events, values::count(v)),
        show: |c| c.limits.max_history_events.to_string(),
    },
    Setting {
        key: "limits.max_history_bytes",
        value_name: "BYTES",
        help: "Most bytes in the history of one orchestration until it continues as new. One that needs more fails.",
        allowed: "a size from 64KiB to 1GiB",
        emulator: None,
        set: |c, v| put(&mut c.limits.max_history_bytes, values::bytes(v, 64 << 10..=1 << 30)),
        show: |c| quoted(&values::show_bytes(c.limits.max_history_bytes)),
    },
    Setting {
        key: "limits.max_waiting_events",
        value_name: "N",
        help: "Most external events that wait for one orchestration. More are refused until it has taken some in.",
        allowed: "a whole number from 0 to 1000000000; 0 is no limit",
        emulator: None,
        set: |c, v| put(&mut c.limits.max_waiting_events, values::count(v)),
        show: |c| c.limits.max_waiting_events.to_string(),
    },
    Setting {
        key: "limits.max_pending_per_instance",
        value_name: "N",
        help: "Most activities, timers and child orchestrations that one orchestration waits for. One that starts more fails.",
        allowed: "a whole number from 0 to 1000000000; 0 is no limit",
        emulator: None,
        set: |c, v| put(&mut c.limits.max_pending_per_instance, values::count(v)),
        show: |c| c.limits.max_pending_per_instance.to_string(),
    },
    Setting {
        key: "limits.stream_history_above",
        value_name: "BYTES",
        help: "Longer histories are left out of a turn when the worker can ask for them by itself.",
        allowed: "a size from 1KiB to 3MiB",
        emulator: None,
        set: |c, v| put(&mut c.limits.stream_history_above, values::bytes(v, 1 << 10..=3 << 20)),
        show: |c| quoted(&values::show_bytes(c.limits.stream_history_above)),
    },
    Setting {
        key: "limits.orchestrator_lease",
        value_name: "TIME",
        help: "Time a connected worker has for one orchestrator turn, before it is handed out again.",
        allowed: "a time from 1s to 7d",
        emulator: None,
        set: |c, v| put(&mut c.limits.orchestrator_lease, values::duration(v, SECOND..=WEEK)),
        show: |c| time(c.limits.orchestrator_lease),
    },
    Setting {
        key: "limits.entity_lease",
        value_name: "TIME",
        help: "Time a connected worker has for one entity batch, before it is handed out again.",
        allowed: "a time from 1s to 7d",
        emulator: None,
        set: |c, v| put(&mut c.limits.entity_lease, values::duration(v, SECOND..=WEEK)),
        show: |c| time(c.limits.entity_lease),
    },
    Setting {
        key: "limits.activity_lease",
        value_name: "TIME",
        help: "Time a connected worker has for one activity. none: as long as the worker stays connected.",
        allowed: "none, or a time from 1s to 7d",
        emulator: None,
        set: |c, v| {
            let none = v.text() == Some("none");
            let lease =
                if none { Some(None) } else { values::duration(v, SECOND..=WEEK).map(Some) };
            put(&mut c.limits.activity_lease, lease)
        },
        show: |c| c.limits.activity_lease.map_or_else(|| quoted("none"), time),
    },
    Setting {
        key: "limits.redelivery_grace",
        value_name: "TIME",
        help: "Time after a worker's stream broke before its work goes to others: its answers may still arrive.",
        allowed: "a time from 0s to 1h",
        emulator: None,
        set: |c, v| put(&mut c.limits.redelivery_grace, values::duration(v, Duration::ZERO..=HOUR)),
        show: |c| time(c.limits.redelivery_grace),
    },
    Setting {
        key: "limits.health_ping",
        value_name: "TIME",
        help: "Silence after which a worker stream gets a health ping. SDKs reconnect when none comes for long.",
        allowed: "a time from 1s to 60s",
        emulator: None,
        // Some SDKs take two minutes of silence for a dead connection (R1.28).
        set: |c, v| put(&mut c.limits.health_ping, values::duration(v, SECOND..=60 * SECOND)),
        show: |c| time(c.limits.health_ping),
    },
    Setting {
        key: "limits.drain_timeout",
        value_name: "TIME",
        help: "Longest time for running calls and work items to finish after SIGTERM or Ctrl-C.",
        allowed: "a time from 0s to 1h",
        emulator: None,
        set: |c, v| put(&mut c.limits.drain_timeout, values::duration(v, Duration::ZERO..=HOUR)),
        show: |c| time(c.limits.drain_timeout),
    },
    Setting {
        key: "limits.hub_calls_per_second",
        value_name: "N",
        help: "Calls of clients to one task hub per second, at this node. More are answered with RESOURCE_EXHAUSTED and when to ask again; calls of workers are not counted.",
        allowed: "a whole number from 0 to 1000000000; 0 is no limit",
        emulator: None,
        set: |c, v| put(&mut c.limits.hub_calls_per_second, values::count(v)),
        show: |c| c.limits.hub_calls_per_second.to_string(),
    },
    Setting {
        key: "limits.hub_calls_in_flight",
        value_name: "N",
        help: "Calls of clients to one task hub at the same time, waits included, at this node.",
        allowed: "a whole number from 0 to 1000000000; 0 is no limit",
        emulator: None,
        set: |c, v| put(&mut c.limits.hub_calls_in_flight, values::count(v)),
        show: |c| c.limits.hub_calls_in_flight.to_string(),
    },
    Setting {
        key: "limits.connection_calls_per_second",
        value_name: "N",
        help: "Calls of clients on one connection per second, at this node. More are answered with RESOURCE_EXHAUSTED and when to ask again; calls of workers are not counted.",
        allowed: "a whole number from 0 to 1000000000; 0 is no limit",
        emulator: None,
        set: |c, v| put(&mut c.limits.connection_calls_per_second, values::count(v)),
        show: |c| c.limits.connection_calls_per_second.to_string(),
    },
    Setting {
        key: "limits.connection_calls_in_flight",
        value_name: "N",
        help: "Calls of clients on one connection at the same time, waits included, at this node.",
        allowed: "a whole number from 0 to 1000000000; 0 is no limit",
        emulator: None,
        set: |c, v| put(&mut c.limits.connection_calls_in_flight, values::count(v)),
        show: |c| c.limits.connection_calls_in_flight.to_string(),
    },
    Setting {
        key: "limits.connection_streams",
        value_name: "N",
        help: "HTTP/2 streams at the same time on one connection. A client that wants more waits, or opens another connection.",
        allowed: "a whole number from 10 to 100000",
        emulator: None,
        set: |c, v| {
            put(&mut c.limits.connection_streams, values::whole(v, 10..=100_000).map(|n| n as u32))
        },
        show: |c| c.limits.connection_streams.to_string(),
    },
    Setting {
        key: "limits.connection_unread_bytes",
        value_name: "BYTES",
        help: "Answers that one connection may leave unread, together: states, pages and histories. A call above that waits, within its deadline, until the client has read others; calls that wait for an instance do not count before they have an answer. Counts for new connections.",
        allowed: "a size from 4MiB to 1GiB",
        emulator: None,
        set: |c, v| put(&mut c.limits.connection_unread_bytes, values::bytes(v, 4 << 20..=1 << 30)),
        show: |c| quoted(&values::show_bytes(c.limits.connection_unread_bytes)),
    },
    Setting {
        key: "limits.request_bytes",
        value_name: "BYTES",
        help: "Bytes of requests under way at this node, in all: a message takes room for all of it when it begins, and keeps it until it is answered. A quarter is for messages up to 64KiB, a quarter for larger ones, half for what has come of those that wait; headers above 4KiB whose message has not begun may take an eighth as much besides. A message that finds no room is not read on, so that its sender waits; one that would be too many to wait is answered with RESOURCE_EXHAUSTED and when to ask again. Messages up to 1KiB take none. What workers answer has half as much room besides, to itself. auto: a quarter of the memory budget, but not less than 32MiB and not more than 2GiB.",
        allowed: "auto, or a size from 4MiB to 64GiB",
        emulator: None,
        set: |c, v| put(&mut c.limits.request_bytes, values::auto_bytes(v, 4 << 20..=64 << 30)),
        show: |c| values::show_auto_bytes(c.limits.request_bytes),
    },
    Setting {
        key: "limits.connection_request_bytes",
        value_name: "BYTES",
        help: "Bytes of requests under way on one connection: three quarters for messages above 64KiB, a quarter for others. A message that finds no room is not read on, so that its sender waits; one message always finds some. auto: an eighth of limits.request_bytes, but not less than 4MiB and not more than 128MiB. Counts for new connections.",
        allowed: "auto, or a size from 1MiB to 1GiB",
        emulator: None,
        set: |c, v| {
            put(&mut c.limits.connection_request_bytes, values::auto_bytes(v, 1 << 20..=1 << 30))
        },
        show: |c| values::show_auto_bytes(c.limits.connection_request_bytes),
    },
    Setting {
        key: "limits.request_time",
        value_name: "TIME",
        help: "Time in which more of a request has to come that has begun to arrive and has room (limits.request_bytes): anything, and while others wait for room, 1MiB (of messages above 8MiB an eighth) or the rest of it. A call of which less comes is answered with DEADLINE_EXCEEDED. The time in which it waits for room itself does not count.",
        allowed: "a time from 1s to 1h",
        emulator: None,
        set: |c, v| put(&mut c.limits.request_time, values::duration(v, SECOND..=HOUR)),
        show: |c| time(c.limits.request_time),
    },
    Setting {
        key: "limits.connections",
        value_name: "N",
        help: "Connections at the same time at each of the ports for clients, gRPC and HTTP. More are closed at once and counted in durahub_connections_refused_total. The peer port has a limit of its own, 2048 and 512 from one address. A lower limit closes none that is there.",
        allowed: "a whole number from 0 to 1000000000; 0 is no limit",
        emulator: None,
        set: |c, v| put(&mut c.limits.connections, values::count(v)),
        show: |c| c.limits.connections.to_string(),
    },
    Setting {
        key: "limits.connections_per_address",
        value_name: "N",
        help: "Connections at the same time at each of the ports for clients from one address (from one /64 network with IPv6), so that whoever floods a port keeps nobody else out. A lower limit closes none that is there.",
        allowed: "a whole number from 0 to 1000000000; 0 is no limit",
        emulator: None,
        set: |c, v| put(&mut c.limits.connections_per_address, values::count(v)),
        show: |c| c.limits.connections_per_address.to_string(),
    },
    Setting {
        key: "retention.completed",
        value_name: "TIME",
        help: "How long instances that completed stay after their end, in task hubs that do not say so themselves (durahub hub retention). off: for ever. Whichever node leads a partition removes what has stayed longer, so give all nodes the same.",
        allowed: RETENTION_ALLOWED,
        emulator: None,
        set: |c, v| put(&mut c.retention.completed, values::retention(v)),
        show: |c| values::show_retention(c.retention.completed),
    },
    Setting {
        key: "retention.failed",
        value_name: "TIME",
        help: "How long instances that failed stay after their end, in task hubs that do not say so themselves (durahub hub retention). off: for ever. Whichever node leads a partition removes what has stayed longer, so give all nodes the same.",
        allowed: RETENTION_ALLOWED,
        emulator: None,
        set: |c, v| put(&mut c.retention.failed, values::retention(v)),
        show: |c| values::show_retention(c.retention.failed),
    },
    Setting {
        key: "retention.terminated",
        value_name: "TIME",
        help: "How long instances that were terminated stay after their end, in task hubs that do not say so themselves (durahub hub retention). off: for ever. Whichever node leads a partition removes what has stayed longer, so give all nodes the same.",
        allowed: RETENTION_ALLOWED,
        emulator: None,
        set: |c, v| put(&mut c.retention.terminated, values::retention(v)),
        show: |c| values::show_retention(c.retention.terminated),
    },
];

/// Fills a field, when there is a value that is allowed.
pub(super) fn put<T>(field: &mut T, value: Option<T>) -> Option<()> {
    *field = value?;
    Some(())
}

/// The text as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// The duration as a TOML string.
pub(super) fn time(duration: Duration) -> String {
    quoted(&humantime::format_duration(duration).to_string())
}
