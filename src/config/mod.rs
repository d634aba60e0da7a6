//! Configuration: what a node is told before it starts.
//!
//! One typed [`Config`] is gathered from four sources; a later one wins, key by key:
//!
//! 1. the TOML file of `--config` or `DURAHUB_CONFIG`; a missing file and an unknown key are errors;
//! 2. the variables of the managed service's emulator (`DTS_TASK_HUB_NAMES`, `DTS_USE_DYNAMIC_TASK_HUBS`,
//!    `DTS_EMULATOR_LOG_LEVEL`), so that its compose files keep working, and three of OpenTelemetry's
//!    (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`);
//! 3. the `DURAHUB_*` variables; an empty one counts as not set;
//! 4. the flags.
//!
//! Only the value that wins is judged, and all that are wrong are told together: see [`ConfigErrors`]. OpenTelemetry's
//! variables are said to all programs of a machine: one that is of no use here stops nothing as long as no collector is
//! named otherwise; it is told in [`Config::unused`].
//! Nothing is opened, bound or created here. The rooms get their values handed over; none reads a global.
//!
//! While a node runs, the file is read again when it changes and at SIGHUP. What can change then is listed in
//! [`RELOADED`]; everything else waits for a restart, and [`Config::waiting`] says what that is.

mod access;
mod access_settings;
mod flags;
mod problems;
mod settings;
mod traces;
mod values;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use access::{Audit, Auth, AuthMode, Jwt, PeerTls, Plaintext, Tls};
pub use flags::Flags;
pub use problems::{ConfigErrors, Problem};
use settings::Setting;
pub use traces::{Ratio, Tracing};
use values::Value;

/// Variable that names the configuration file when the flag does not.
pub(crate) const CONFIG_VARIABLE: &str = "DURAHUB_CONFIG";

/// Where values come from that are not said to this program alone.
const FOREIGN: &str = "variable OTEL_";

/// Settings that a running node takes over when the file changes. What the files of certificates, tokens,
/// grants and keys hold is taken over, too; where they are is not.
pub const RELOADED: &[&str] = &[
    "log_level",
    "memory_budget",
    "storage.low_free",
    "storage.critical_free",
    "limits.max_instance_id_length",
    "limits.max_payload_bytes",
    "limits.max_custom_status_bytes",
    "limits.max_name_length",
    "limits.max_tags_bytes",
    "limits.max_history_events",
    "limits.max_history_bytes",
    "limits.max_waiting_events",
    "limits.max_pending_per_instance",
    "limits.hub_calls_per_second",
    "limits.hub_calls_in_flight",
    "limits.connection_calls_per_second",
    "limits.connection_calls_in_flight",
    "limits.connection_unread_bytes",
    "limits.request_bytes",
    "limits.connection_request_bytes",
    "limits.request_time",
    "limits.connections",
    "limits.connections_per_address",
    "retention.completed",
    "retention.failed",
    "retention.terminated",
];

/// Everything that a node can be told. The default is a persistent single node on loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder of the log and the state. Unused when [`ephemeral`](Self::ephemeral).
    pub data_dir: PathBuf,
    /// Keep everything in memory.
    pub ephemeral: bool,
    /// Where SDK clients and workers connect. Port 0 picks a free one.
    pub grpc_addr: SocketAddr,
    /// Where the status page, probes and metrics are served. Port 0 picks a free one.
    pub http_addr: SocketAddr,
    /// Where the other nodes connect. Port 0 picks a free one.
    pub peer_addr: SocketAddr,
    /// `HOST:PORT` under which other nodes reach this one; `None` means [`peer_addr`](Self::peer_addr).
    pub advertise_peer: Option<String>,
    /// Number of this node, 1 or more; `None`: that of the data folder, or as the cluster chooses.
    pub node_id: Option<u64>,
    /// First nodes of a cluster and their peer addresses; empty for a cluster of one.
    pub initial_cluster: BTreeMap<u64, String>,
    /// Peer addresses of a cluster to join.
    pub join: Vec<String>,
    /// Failure domain of this node.
    pub zone: String,
    /// Votes per partition, odd, 1 to 7.
    pub replication_factor: u32,
    /// Number of partitions, 1 to 128, fixed at the first start of a data folder.
    pub partitions: u32,
    /// Hubs to create at start: at least one, valid names, none twice.
    pub task_hubs: Vec<String>,
    /// Create hubs on first use.
    pub dynamic_task_hubs: bool,
    /// Clients may create and delete hubs.
    pub task_hub_calls: bool,
    /// A valid `tracing` filter.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Storage cache in MiB, 16 to 65,536.
    pub cache_mb: u64,
    /// Memory that the process may have, in bytes, 64 MiB to 1 TiB; `None`: as its cgroup or the machine says.
    pub memory_budget: Option<u64>,
    /// Log entries of a partition between two compactions, 100 to 10,000,000.
    pub snapshot_every: u64,
    /// How much of the disk stays free.
    pub storage: Storage,
    /// Sizes and times that bound what clients and workers can ask for.
    pub limits: Limits,
    /// How long ended instances stay in hubs that do not say so themselves.
    pub retention: Retention,
    /// TLS towards clients.
    pub tls: Tls,
    /// TLS between nodes.
    pub peer_tls: PeerTls,
    /// Who callers are and what they may do.
    pub auth: Auth,
    /// The audit log.
    pub audit: Audit,
    /// The collector of traces.
    pub tracing: Tracing,
    /// Variables of OpenTelemetry that are of no use here, and count as not set.
    pub unused: Vec<Problem>,
}

/// How much of the file system of the data folder stays free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// With less, nothing new is begun.
    pub low_free: FreeSpace,
    /// With less, nothing grows.
    pub critical_free: FreeSpace,
}

/// Free space of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreeSpace {
    /// What fits most disks.
    #[default]
    Auto,
    /// So many bytes, up to 1 TiB; 0 turns it off.
    Bytes(u64),
    /// A share of the file system, 1 to 90 percent.
    Percent(u8),
}

/// Sizes and times that bound what clients and workers can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest gRPC message in bytes, 64 KiB to 1 GiB.
    pub max_message_bytes: usize,
    /// Longest instance id in characters, 1 to 1,000.
    pub max_instance_id_length: usize,
    /// Longest payload in bytes, 1 KiB to 1 GiB.
    pub max_payload_bytes: usize,
    /// Longest custom status in bytes, 1 KiB to 1 GiB.
    pub max_custom_status_bytes: usize,
    /// Longest name or version in characters, 1 to 10,000.
    pub max_name_length: usize,
    /// Longest keys and values of all tags of an instance or a task, in bytes, 1 KiB to 1 MiB.
    pub max_tags_bytes: usize,
    /// Most events in the history of one generation; 0: no limit.
    pub max_history_events: u32,
    /// Most bytes in the history of one generation.
    pub max_history_bytes: usize,
    /// Most external events that wait for one instance; 0: no limit.
    pub max_waiting_events: u32,
    /// Most activities, timers and children that one instance waits for; 0: no limit.
    pub max_pending_per_instance: u32,
    /// Larger histories, in bytes, are left out of turns for workers that can ask for them.
    pub stream_history_above: usize,
    /// Lease of an orchestrator turn.
    pub orchestrator_lease: Duration,
    /// Lease of an entity batch.
    pub entity_lease: Duration,
    /// Lease of an activity; `None`: for as long as the worker is connected.
    pub activity_lease: Option<Duration>,
    /// Wait between the break of a worker's stream and handing its work to others.
    pub redelivery_grace: Duration,
    /// Silence after which a worker stream gets a health ping.
    pub health_ping: Duration,
    /// Longest time a stop may take to finish running calls.
    pub drain_timeout: Duration,
    /// Calls of clients to one task hub per second, at this node; 0: no limit.
    pub hub_calls_per_second: u32,
    /// Calls of clients to one task hub at the same time, at this node; 0: no limit.
    pub hub_calls_in_flight: u32,
    /// Calls of a client on one connection per second; 0: no limit.
    pub connection_calls_per_second: u32,
    /// Calls of a client on one connection at the same time; 0: no limit.
    pub connection_calls_in_flight: u32,
    /// HTTP/2 streams at the same time on one connection, 10 to 100,000.
    pub connection_streams: u32,
    /// Bytes of answers that one connection may leave unread, 4 MiB to 1 GiB.
    pub connection_unread_bytes: usize,
    /// Bytes of requests under way at this node, 4 MiB to 64 GiB; `None`: by the memory budget.
    pub request_bytes: Option<usize>,
    /// Bytes of requests under way on one connection, 1 MiB to 1 GiB; `None`: by those of the node.
    pub connection_request_bytes: Option<usize>,
    /// Time in which something has to come of a request that has room, 1 s to 1 h.
    pub request_time: Duration,
    /// Connections at the same time at each port for clients, in all; 0: no limit.
    pub connections: u32,
    /// Connections at the same time at each port for clients, from one address; 0: no limit.
    pub connections_per_address: u32,
}

/// How long ended instances stay, from their end, by the status in which they ended: 1 s to 10 years; `None`: for
/// ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Those that completed.
    pub completed: Option<Duration>,
    /// Those that failed.
    pub failed: Option<Duration>,
    /// Those that were terminated.
    pub terminated: Option<Duration>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text when standard error is a terminal, otherwise JSON.
    Auto,
    /// One readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Config {
            data_dir: PathBuf::from("./durahub-data"),
            ephemeral: false,
            grpc_addr: loopback(8080),
            http_addr: loopback(8082),
            peer_addr: loopback(8083),
            advertise_peer: None,
            node_id: None,
            initial_cluster: BTreeMap::new(),
            join: Vec::new(),
            zone: String::new(),
            replication_factor: 3,
            partitions: 8,
            task_hubs: vec!["default".to_owned()],
            dynamic_task_hubs: false,
            task_hub_calls: true,
            log_level: "info".to_owned(),
            log_format: LogFormat::Auto,
            cache_mb: 0,
            memory_budget: None,
            snapshot_every: 50_000,
            storage: Storage::default(),
            limits: Limits::default(),
            retention: Retention::default(),
            tls: Tls::default(),
            peer_tls: PeerTls::default(),
            auth: Auth::default(),
            audit: Audit::default(),
            tracing: Tracing::default(),
            unused: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_message_bytes: 64 << 20,
            max_instance_id_length: 100,
            max_payload_bytes: 1 << 20,
            max_custom_status_bytes: 1 << 20,
            max_name_length: 1000,
            max_tags_bytes: 64 << 10,
            max_history_events: 100_000,
            max_history_bytes: 64 << 20,
            max_waiting_events: 100_000,
            max_pending_per_instance: 100_000,
            stream_history_above: 1 << 20,
            orchestrator_lease: Duration::from_secs(300),
            entity_lease: Duration::from_secs(300),
            activity_lease: None,
            redelivery_grace: Duration::from_secs(3),
            health_ping: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(20),
            hub_calls_per_second: 0,
            hub_calls_in_flight: 0,
            connection_calls_per_second: 0,
            connection_calls_in_flight: 0,
            connection_streams: 1000,
            connection_unread_bytes: 32 << 20,
            request_bytes: None,
            connection_request_bytes: None,
            request_time: Duration::from_secs(30),
            connections: 10_000,
            connections_per_address: 2_000,
        }
    }
}

impl Config {
    /// Gathers the configuration from file, variables and flags.
    ///
    /// `variable` looks up an environment variable; tests hand in a table instead of the environment.
    ///
    /// # Errors
    /// [`ConfigErrors`] with every problem: an unreadable file, unknown keys, values that are not allowed.
    pub fn load(
        flags: &Flags,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigErrors> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let mut problems = Vec::new();
        let path = flags.config.clone().or_else(|| variable(CONFIG_VARIABLE).map(PathBuf::from));
        let file = path.map(|path| read_file(&path, &mut problems));

        let (mut config, mut foreign) = (Config::default(), Vec::new());
        for setting in settings::all() {
            let Some((value, origin)) = winner(setting, flags, &variable, file.as_ref()) else {
                continue;
            };
            if (setting.set)(&mut config, &value).is_none() {
                let is_foreign = origin.starts_with(FOREIGN);
                let (key, remedy) =
                    (setting.key.to_owned(), format!("allowed is {}", setting.allowed));
                let found = if is_foreign { &mut foreign } else { &mut problems };
                found.push(Problem { key, value: value.to_string(), origin, remedy });
            }
        }
        match config.tracing.endpoint {
            None => config.unused = foreign,
            Some(_) => problems.extend(foreign),
        }
        config.check_together(&mut problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigErrors { problems }) }
    }

    /// The file of a configuration, if there is one.
    pub fn file(flags: &Flags, variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
        let variable = || variable(CONFIG_VARIABLE).filter(|value| !value.trim().is_empty());
        flags.config.clone().or_else(|| variable().map(PathBuf::from))
    }

    /// Keys that differ in a newer configuration and wait for a restart.
    #[must_use]
    pub fn waiting(&self, newer: &Config) -> Vec<&'static str> {
        let fixed = settings::all().filter(|setting| !RELOADED.contains(&setting.key));
        let differs = fixed.filter(|setting| (setting.show)(self) != (setting.show)(newer));
        differs.map(|setting| setting.key).collect()
    }

    /// The configuration as a commented TOML file that [`load`](Self::load) reads back to the same.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text =
            String::from("# Durahub configuration. Every key is also a flag and a variable.\n");
        let mut table = "";
        for setting in settings::all() {
            if setting.table() != table {
                table = setting.table();
                text += &format!("\n[{table}]\n");
            }
            text += &format!("\n# {}\n# Allowed: {}.\n", setting.text(), setting.allowed);
            text += &format!("# --{}, {}\n", setting.flag(), setting.variable());
            text += &format!("{} = {}\n", setting.name(), (setting.show)(self));
        }
        text
    }

    /// What is wrong with values that are each fine alone.
    fn check_together(&self, problems: &mut Vec<Problem>) {
        let mut problem = |key: &str, value: String, remedy: &str| {
            let (key, origin) = (key.to_owned(), "taken together".to_owned());
            problems.push(Problem { key, value, origin, remedy: remedy.to_owned() });
        };
        let Storage { low_free, critical_free } = self.storage;
        let is_above = match (critical_free, low_free) {
            (FreeSpace::Bytes(critical), FreeSpace::Bytes(low)) => critical > low,
            (FreeSpace::Percent(critical), FreeSpace::Percent(low)) => critical > low,
            _ => false,
        };
        if is_above {
            let remedy = "allowed is not more than storage.low_free: new work is refused first";
            problem("storage.critical_free", values::show_free_space(critical_free), remedy);
        }
        access::check(&self.tls, &self.peer_tls, &self.auth, &mut problem);
        let nowhere = self.peer_addr.ip().is_unspecified() && self.advertise_peer.is_none();
        if !self.join.is_empty() && nowhere {
            let remedy = "set to the HOST:PORT under which the other nodes reach this one";
            problem("advertise_peer", "\"\"".into(), remedy);
        }
        if !self.initial_cluster.is_empty() {
            let own = self.node_id.is_some_and(|id| self.initial_cluster.contains_key(&id));
            let ids = || format!("{:?}", self.initial_cluster.keys().collect::<Vec<_>>());
            if !own {
                problem(
                    "initial_cluster",
                    ids(),
                    "allowed is a list that contains this node's --node-id",
                );
            }
            if !self.join.is_empty() {
                problem(
                    "join",
                    format!("{:?}", self.join),
                    "left out when initial_cluster is given",
                );
            }
            if self.ephemeral {
                problem(
                    "ephemeral",
                    "true".into(),
                    "left out in a cluster: a node must remember its votes",
                );
            }
        }
        let ports = [
            ("grpc_addr", self.grpc_addr),
            ("http_addr", self.http_addr),
            ("peer_addr", self.peer_addr),
        ];
        for (i, (key, addr)) in ports.iter().enumerate() {
            let twin = ports[..i].iter().find(|(_, other)| other == addr && addr.port() != 0);
            let named = problems.iter().any(|problem| problem.key == *key);
            if let Some((other, _)) = twin.filter(|_| !named) {
                problems.push(Problem {
                    key: (*key).to_owned(),
                    value: format!("\"{addr}\""),
                    origin: "taken together".to_owned(),
                    remedy: format!("allowed is an address other than that of {other}"),
                });
            }
        }
    }
}

/// A file that was read: its name for messages, and its content.
struct File {
    name: String,
    table: toml::Table,
}

impl File {
    fn get(&self, key: &str) -> Option<&toml::Value> {
        let (tables, name) = key.rsplit_once('.').map_or((None, key), |(t, name)| (Some(t), name));
        let mut tables = tables.into_iter().flat_map(|tables| tables.split('.'));
        tables.try_fold(&self.table, |table, name| table.get(name)?.as_table())?.get(name)
    }
}

/// The value that counts for a setting, and where it came from.
fn winner(
    setting: &Setting,
    flags: &Flags,
    variable: &dyn Fn(&str) -> Option<String>,
    file: Option<&File>,
) -> Option<(Value, String)> {
    if let Some(text) = flags.values.get(setting.key) {
        return Some((Value::Text(text.clone()), format!("flag --{}", setting.flag())));
    }
    let names = [Some(setting.variable()), setting.emulator.map(str::to_owned)];
    for name in names.into_iter().flatten() {
        if let Some(text) = variable(&name) {
            return Some((Value::Text(text), format!("variable {name}")));
        }
    }
    let file = file?;
    Some((Value::from_toml(file.get(setting.key)?), format!("file {}", file.name)))
}

/// Reads a TOML file and lists what it holds that no setting knows. An unreadable file counts as empty.
fn read_file(path: &Path, problems: &mut Vec<Problem>) -> File {
    let name = path.display().to_string();
    let mut problem = |key: String, value: String, remedy: String| {
        problems.push(Problem { key, value, origin: format!("file {name}"), remedy });
    };
    let unusable = |text: &str| format!("\"{text}\"");
    let table = match std::fs::read_to_string(path) {
        Err(error) => {
            problem("config".into(), unusable(&name), format!("the file cannot be read: {error}"));
            toml::Table::new()
        }
        Ok(text) => text.parse().unwrap_or_else(|error: toml::de::Error| {
            let line = error
                .span()
                .map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let message = error.message().replace('\n', ", ");
            problem(
                "config".into(),
                unusable(&name),
                format!("line {line} is not valid TOML: {message}"),
            );
            toml::Table::new()
        }),
    };
    for (key, value) in unknown_keys("", &table) {
        let remedy = unknown(key.rsplit_once('.').map_or("", |(table, _)| table));
        problem(key, Value::from_toml(value).to_string(), remedy);
    }
    File { name, table }
}

/// Keys of a table, with the name of the table in front, that are neither settings nor tables of settings.
fn unknown_keys<'t>(parent: &str, table: &'t toml::Table) -> Vec<(String, &'t toml::Value)> {
    let mut found = Vec::new();
    for (name, value) in table {
        let key = if parent.is_empty() { name.clone() } else { format!("{parent}.{name}") };
        let holds_settings = settings::all().any(|s| s.key.starts_with(&format!("{key}.")));
        match value.as_table().filter(|_| holds_settings) {
            Some(inner) => found.extend(unknown_keys(&key, inner)),
            None if settings::all().any(|setting| setting.key == key) => {}
            None => found.push((key, value)),
        }
    }
    found
}

/// The remedy for a key that does not exist: those that do, in the same table.
fn unknown(table: &str) -> String {
    let here = settings::all().filter(|setting| setting.table() == table);
    let names: Vec<_> = here.map(Setting::name).collect();
    let tables = match table {
        "" => ", and the tables storage, limits, retention, tls, peer_tls, auth, audit and tracing",
        "auth" => ", and the table jwt",
        _ => "",
    };
    format!("unknown key; allowed are {}{tables}", names.join(", "))
}

#[cfg(test)]
mod tests;
