//! Who may name whom: the table of ARCHITECTURE.md as data, and the check of one file against it.
//!
//! A room is a file or a folder. A file belongs to the row with the longest matching path; a file under
//! `src/` without a row is itself a violation, so a new room must state what it may name. Test files and
//! items under `#[cfg(test)]` are free.

use crate::source::Source;

/// One row.
pub(crate) struct Room {
    /// Name in messages, and for rooms of the main package the module that is always their own.
    name: &'static str,
    /// Files and folders (with a slash at the end), from the root of the project.
    paths: &'static [&'static str],
    /// Rooms of the main package that may be named besides the own one. `None`: all.
    ours: Option<&'static [&'static str]>,
    /// The only crates that may be named. `None`: all that `never` leaves.
    only: Option<&'static [&'static str]>,
    /// Paths that must not be named, with all below them.
    never: &'static [&'static str],
    /// Exceptions from `never`.
    but: &'static [&'static str],
    /// Words that must not occur in the code.
    words: &'static [&'static str],
    /// Whether clients and servers of the SDK services may be named.
    services: bool,
}

const FREE: Room = Room {
    name: "",
    paths: &[],
    ours: None,
    only: None,
    never: &[],
    but: &[],
    words: &[],
    services: true,
};

/// Stores and consensus belong to `cluster`; time and entropy come from `clock`.
const HIDDEN: &[&str] =
    &["openraft", "sled", "bincode", "fastrand", "rand", "std::time::SystemTime"];
const LEAF: &[&str] = &[
    "openraft",
    "sled",
    "bincode",
    "fastrand",
    "rand",
    "std::time::SystemTime",
    "durahub_cluster",
    "durahub_proto",
];
/// What a room that holds state of the node may lean on.
const SUPPORT: &[&str] = &["clock", "config", "health", "telemetry"];

/// The table.
pub(crate) const ROOMS: &[Room] = &[
    Room {
        name: "proto",
        paths: &["proto/"],
        never: &["durahub", "durahub_cluster", "openraft", "sled"],
        ..FREE
    },
    Room {
        name: "cluster",
        paths: &["cluster/"],
        never: &["durahub", "durahub_proto", "openraft", "sled"],
        but: &["durahub_proto::peer"],
        services: false,
        ..FREE
    },
    Room {
        name: "cluster/src/raft",
        paths: &["cluster/src/raft/"],
        never: &["durahub", "durahub_proto", "sled"],
        but: &["durahub_proto::peer"],
        services: false,
        ..FREE
    },
    Room {
        name: "cluster/src/store",
        paths: &["cluster/src/store/"],
        never: &["durahub", "durahub_proto", "openraft", "tonic"],
        services: false,
        ..FREE
    },
    Room {
        name: "engine",
        paths: &["src/engine/"],
        ours: Some(&[]),
        only: Some(&[
            "std",
            "core",
            "alloc",
            "durahub_proto",
            "prost",
            "prost_types",
            "serde",
            "serde_bytes",
            "bytes",
            "thiserror",
        ]),
        never: &[
            "std::env",
            "std::fs",
            "std::io",
            "std::net",
            "std::process",
            "std::sync::atomic",
            "std::sync::mpsc",
            "std::thread",
        ],
        words: &[
            "HashMap",
            "HashSet",
            "RandomState",
            "SystemTime",
            "Instant",
            "Mutex",
            "RwLock",
            "async",
            "await",
            "println",
            "eprintln",
            "unsafe",
        ],
        services: false,
        ..FREE
    },
    Room {
        name: "machine",
        paths: &["src/machine.rs"],
        ours: Some(&["engine"]),
        only: Some(&[
            "std",
            "core",
            "alloc",
            "durahub_cluster",
            "durahub_proto",
            "prost",
            "serde",
            "bytes",
            "thiserror",
            "tracing",
        ]),
        never: HIDDEN,
        services: false,
        ..FREE
    },
    Room {
        name: "dispatch",
        paths: &["src/dispatch/", "src/dispatch.rs"],
        ours: Some(&["engine", "machine", "spans", SUPPORT[0], SUPPORT[1], SUPPORT[2], SUPPORT[3]]),
        never: &[
            "openraft",
            "sled",
            "bincode",
            "fastrand",
            "rand",
            "std::time::SystemTime",
            "tonic",
            "axum",
        ],
        services: false,
        ..FREE
    },
    Room {
        name: "gateway",
        paths: &["src/gateway/"],
        ours: Some(&[
            "access", "dispatch", "engine", "machine", "spans", "throttle", SUPPORT[0], SUPPORT[1],
            SUPPORT[2], SUPPORT[3],
        ]),
        never: HIDDEN,
        ..FREE
    },
    Room {
        name: "dashboard",
        paths: &["src/dashboard/", "src/api/"],
        ours: Some(&[
            "api", "dispatch", "engine", "http", "machine", SUPPORT[0], SUPPORT[1], SUPPORT[2],
            SUPPORT[3],
        ]),
        never: HIDDEN,
        services: false,
        ..FREE
    },
    // The bench is a client: it may know the wire and nothing else of ours.
    Room {
        name: "bench",
        paths: &["src/bench/", "src/bench.rs"],
        ours: Some(&["dial", "tls"]),
        never: &["durahub_cluster", "openraft", "sled", "bincode"],
        ..FREE
    },
    Room { name: "telemetry", paths: &["src/telemetry/"], ours: Some(&[]), never: LEAF, ..FREE },
    Room {
        name: "spans",
        paths: &["src/spans/"],
        ours: Some(&["clock", "telemetry", "tls"]),
        never: &[
            "openraft",
            "sled",
            "bincode",
            "fastrand",
            "rand",
            "std::time::SystemTime",
            "durahub_cluster",
            "axum",
        ],
        ..FREE
    },
    // A configuration knows what a grant looks like.
    Room { name: "config", paths: &["src/config/"], ours: Some(&["access"]), never: LEAF, ..FREE },
    Room {
        name: "access",
        paths: &["src/access/"],
        ours: Some(&["clock", "tls"]),
        never: HIDDEN,
        services: false,
        ..FREE
    },
    Room {
        name: "throttle",
        paths: &["src/throttle/"],
        ours: Some(&["access", "clock", "tls"]),
        never: HIDDEN,
        services: false,
        ..FREE
    },
    Room {
        name: "pressure",
        paths: &["src/pressure/"],
        ours: Some(&["telemetry"]),
        never: HIDDEN,
        services: false,
        ..FREE
    },
    Room { name: "tls", paths: &["src/tls/"], ours: Some(&[]), never: HIDDEN, ..FREE },
    Room {
        name: "clock",
        paths: &["src/clock.rs"],
        ours: Some(&[]),
        never: &["openraft", "sled", "durahub_cluster", "durahub_proto"],
        ..FREE
    },
    Room {
        name: "health",
        paths: &["src/health.rs"],
        ours: Some(&["telemetry"]),
        never: LEAF,
        ..FREE
    },
    Room {
        name: "http",
        paths: &["src/http.rs"],
        ours: Some(&["access", "health", "telemetry", "tls"]),
        never: LEAF,
        ..FREE
    },
    Room {
        name: "shell",
        paths: &[
            "src/banner.rs",
            "src/listen.rs",
            "src/panics.rs",
            "src/reload.rs",
            "src/shutdown.rs",
        ],
        ours: Some(&[]),
        never: LEAF,
        ..FREE
    },
    Room {
        name: "server",
        paths: &[
            "src/server.rs",
            "src/server/",
            "src/connections.rs",
            "src/reloading.rs",
            "src/security.rs",
        ],
        never: HIDDEN,
        ..FREE
    },
    Room { name: "dial", paths: &["src/dial.rs"], ours: Some(&["tls"]), never: LEAF, ..FREE },
    // The command line is the one place that starts a server.
    Room {
        name: "cli",
        paths: &["src/cli.rs", "src/cli/", "src/main.rs", "src/lib.rs"],
        ours: Some(&[
            "access",
            "bench",
            "cli",
            "config",
            "dial",
            "panics",
            "server",
            "shutdown",
            "telemetry",
        ]),
        never: HIDDEN,
        ..FREE
    },
];

/// What a file names that its room must not. `path` is seen from the root; `crates` are all crates that the
/// workspace depends on, as they are written in code.
pub(crate) fn violations(path: &str, source: &Source, crates: &[String]) -> Vec<String> {
    if is_test(path) {
        return Vec::new();
    }
    let Some(room) = room_of(path) else {
        let row = "no row in tests/architecture/rooms.rs says what this file may name";
        return Vec::from_iter(path.starts_with("src/").then(|| format!("{path}: {row}")));
    };
    let mut found = Vec::new();
    let mut refuse = |line: usize, what: &str| {
        found.push(format!("{path}:{line}: {} must not name {what}", room.name))
    };
    for named in source.names(&module_of(path)) {
        let segments: Vec<_> = named.segments.iter().map(String::as_str).collect();
        if refused(room, &segments, crates, path.starts_with("src/")) {
            refuse(named.line, &segments.join("::"));
        }
    }
    for token in source.tokens.iter().filter(|token| room.words.contains(&token.text.as_str())) {
        refuse(token.line, &token.text);
    }
    // The seam: one file fits the engine to the cluster.
    if path.starts_with("src/") && path != "src/machine.rs" {
        for pair in source
            .tokens
            .windows(2)
            .filter(|pair| pair[0].text == "Machine" && pair[1].text == "for")
        {
            refuse(pair[0].line, "an implementation of Machine: the seam is src/machine.rs");
        }
    }
    found
}

fn refused(room: &Room, segments: &[&str], crates: &[String], is_main: bool) -> bool {
    let below = |prefix: &&str| {
        let prefix: Vec<_> = prefix.split("::").collect();
        segments.starts_with(&prefix)
    };
    let (first, second) = (segments[0], segments.get(1).copied().unwrap_or("*"));
    let own = is_main && (first == "crate" || first == "durahub");
    let room_refused = own
        && room.ours.is_some_and(|ours| {
            second != room.name && !ours.contains(&second) && !owns(room, second)
        });
    let outside = crates.iter().any(|name| name == first) || first == "std";
    let crate_refused = !own && outside && room.only.is_some_and(|only| !only.contains(&first));
    let path_refused = room.never.iter().any(below) && !room.but.iter().any(below);
    let is_service = |segment: &&str| {
        segment.ends_with("_service_server") || segment.ends_with("_service_client")
    };
    room_refused
        || crate_refused
        || path_refused
        || (!room.services && segments.iter().any(is_service))
}

/// A row may hold several modules; each is its own.
fn owns(room: &Room, module: &str) -> bool {
    room.paths.iter().any(|path| {
        path.trim_start_matches("src/").trim_end_matches('/').trim_end_matches(".rs") == module
    })
}

fn room_of(path: &str) -> Option<&'static Room> {
    let length = |room: &&Room| {
        let matching = room.paths.iter().filter(|prefix| match prefix.strip_suffix('/') {
            Some(_) => path.starts_with(**prefix),
            None => path == **prefix,
        });
        matching.map(|prefix| prefix.len()).max().unwrap_or(0)
    };
    ROOMS.iter().max_by_key(length).filter(|room| length(room) > 0)
}

/// Files and folders (with a slash at the end) of the modules that a file has for tests only.
pub(crate) fn test_places(path: &str, source: &Source) -> Vec<String> {
    let heads = ["/mod.rs", "/lib.rs", "/main.rs"];
    let folder = heads.iter().find_map(|head| path.strip_suffix(head));
    let folder = folder.unwrap_or_else(|| path.trim_end_matches(".rs"));
    let places = |name: &&str| [format!("{folder}/{name}.rs"), format!("{folder}/{name}/")];
    source.test_modules().iter().flat_map(places).collect()
}

/// Test and bench files may name what they like.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "benches"))
}

/// `src/engine/decide/start.rs` is the module `engine::decide::start`.
fn module_of(path: &str) -> Vec<&str> {
    let inside = path.split_once("src/").map_or(path, |(_, inside)| inside).trim_end_matches(".rs");
    inside.split('/').filter(|part| !matches!(*part, "mod" | "lib" | "main")).collect()
}
