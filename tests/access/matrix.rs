//! Identity x role x call: what is allowed, and that nothing else is.

use std::collections::BTreeMap;

use serde_json::json;
use tonic::Code;
use tonic::transport::Channel;

use super::calls::{all_paths, call, refused};
use super::support::security::channel;
use super::{Guarded, ROLES};

/// What each call needs, written down a second time: a list of those that may. `known` is everybody who is
/// somebody, `all` everybody, `node` a node of the cluster, `unserved` nobody, with `UNIMPLEMENTED`.
const MAY: &[(&str, &[&str])] = &[
    (
        "reader contributor admin",
        &[
            "/TaskHubSidecarService/GetInstance",
            "/TaskHubSidecarService/WaitForInstanceStart",
            "/TaskHubSidecarService/WaitForInstanceCompletion",
            "/TaskHubSidecarService/QueryInstances",
            "/TaskHubSidecarService/ListInstanceIds",
            "/TaskHubSidecarService/GetEntity",
            "/TaskHubSidecarService/QueryEntities",
            "/durahub.v1.EntityService/ListEntityLocks",
        ],
    ),
    (
        "worker contributor admin",
        &[
            "/TaskHubSidecarService/GetWorkItems",
            "/TaskHubSidecarService/CompleteActivityTask",
            "/TaskHubSidecarService/CompleteOrchestratorTask",
            "/TaskHubSidecarService/CompleteEntityTask",
            "/TaskHubSidecarService/AbandonTaskActivityWorkItem",
            "/TaskHubSidecarService/AbandonTaskOrchestratorWorkItem",
            "/TaskHubSidecarService/AbandonTaskEntityWorkItem",
        ],
    ),
    ("reader worker contributor admin", &["/TaskHubSidecarService/StreamInstanceHistory"]),
    (
        "contributor admin",
        &[
            "/TaskHubSidecarService/StartInstance",
            "/TaskHubSidecarService/RewindInstance",
            "/TaskHubSidecarService/RestartInstance",
            "/TaskHubSidecarService/RaiseEvent",
            "/TaskHubSidecarService/TerminateInstance",
            "/TaskHubSidecarService/SuspendInstance",
            "/TaskHubSidecarService/ResumeInstance",
            "/TaskHubSidecarService/PurgeInstances",
            "/TaskHubSidecarService/SignalEntity",
            "/TaskHubSidecarService/CleanEntityStorage",
            "/TaskHubSidecarService/SkipGracefulOrchestrationTerminations",
        ],
    ),
    (
        "admin",
        &[
            "/TaskHubSidecarService/CreateTaskHub",
            "/TaskHubSidecarService/DeleteTaskHub",
            "/durahub.v1.TaskHubService/SetRetention",
        ],
    ),
    (
        "known",
        &[
            "/TaskHubSidecarService/Hello",
            "/durahub.v1.TaskHubService/ListTaskHubs",
            // The task hub stands in the request: tests/access/scaler.rs goes through the roles.
            "/externalscaler.ExternalScaler/IsActive",
            "/externalscaler.ExternalScaler/StreamIsActive",
            "/externalscaler.ExternalScaler/GetMetricSpec",
            "/externalscaler.ExternalScaler/GetMetrics",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ],
    ),
    ("all", &["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]),
    ("root watcher", &["/durahub.peer.v1.Admin/Status"]),
    (
        "root",
        &[
            "/durahub.peer.v1.Admin/AddNode",
            "/durahub.peer.v1.Admin/RemoveNode",
            "/durahub.peer.v1.Admin/TransferLeader",
            "/durahub.peer.v1.Admin/Drain",
        ],
    ),
    (
        "node",
        &[
            "/durahub.peer.v1.Peer/Link",
            "/durahub.peer.v1.Peer/InstallSnapshot",
            "/durahub.peer.v1.Peer/Identify",
            "/durahub.peer.v1.Peer/Join",
        ],
    ),
];

fn who_may(path: &str) -> Vec<&'static str> {
    let unserved = ["/durabletask.protos.backend.v1.", "/microsoft.durabletask.sandboxes."];
    if unserved.iter().any(|service| path.starts_with(service)) {
        return vec!["unserved"];
    }
    let rows = MAY.iter().filter(|(_, paths)| paths.contains(&path));
    let found: Vec<_> = rows.map(|(who, _)| who.split(' ').collect::<Vec<_>>()).collect();
    assert_eq!(found.len(), 1, "say in tests/access/matrix.rs, once, who may call {path}");
    found[0].clone()
}

#[test]
fn every_call_of_every_service_has_an_entry_and_every_entry_a_call() {
    let paths = all_paths();
    for path in &paths {
        who_may(path);
        let rows = durahub::access::all_calls().filter(|call| call.path == path);
        assert_eq!(rows.count(), 1, "{path} stands in src/access/calls.rs once");
    }
    let mut listed = MAY.iter().flat_map(|(_, paths)| *paths);
    assert!(listed.all(|path| paths.iter().any(|known| known == path)));
    for call in durahub::access::all_calls() {
        let is_page = call.path.matches('/').count() == 1;
        assert!(is_page || paths.iter().any(|path| path == call.path), "{}", call.path);
    }
}

/// One caller: how it is known, as whom, and what it brings.
struct Caller {
    kind: &'static str,
    name: &'static str,
    channel: Channel,
    token: Option<String>,
}

#[tokio::test]
async fn each_role_may_what_it_should_however_it_is_known_and_nothing_else() {
    let guarded = Guarded::start(&[]).await;
    let plain = guarded.channel(None);
    let mut callers = Vec::new();
    for name in ROLES.into_iter().chain(["root", "watcher", "nobody", "other"]) {
        let token = Some(guarded.token(name).to_owned());
        callers.push(Caller { kind: "token", name, channel: plain.clone(), token });
        let token = Some(guarded.signer.token(&json!({ "role": [name, "x"], "sub": "someone" })));
        callers.push(Caller { kind: "jwt", name, channel: plain.clone(), token });
        let file = format!("client-{name}");
        let pair = guarded.ca.issue(guarded.folder.path(), &file, &[], &format!("cert-{name}"));
        let channel = guarded.channel(Some(&pair));
        callers.push(Caller { kind: "certificate", name, channel, token: None });
    }
    callers.push(Caller { kind: "token", name: "stranger", channel: plain.clone(), token: None });
    let peer = format!("http://{}", guarded.server.addresses.peer);
    let peer = channel(&peer, None, None);

    let mut judged = BTreeMap::new();
    for path in all_paths() {
        let may = who_may(&path);
        if may == ["node"] {
            continue;
        }
        let on_peer_port = path.starts_with("/durahub.peer.");
        // Nothing that a caller does may spoil the next one's call: hubs come and go here.
        let hub = if path.ends_with("TaskHub") { "a-hub-of-nobody" } else { "a" };
        let able = callers.iter().filter(|caller| !on_peer_port || caller.kind != "certificate");
        let (path, peer, may) = (&path, &peer, &may);
        let calls = able.map(|Caller { kind, name, channel, token }| async move {
            let channel = if on_peer_port { peer } else { channel };
            let found = refused(channel, path, hub, token.as_deref()).await;
            let allowed = match *name {
                "stranger" => *may == ["all"],
                _ if *may == ["all"] || *may == ["known"] || *may == ["unserved"] => true,
                // An admin of all hubs is one of this hub, too.
                "root" => true,
                "watcher" => may.contains(&"watcher") || may.contains(&"reader"),
                name => hub == "a" && may.contains(&name),
            };
            let expected = match *name {
                _ if allowed => None,
                "stranger" => Some(Code::Unauthenticated),
                _ => Some(Code::PermissionDenied),
            };
            assert_eq!(found, expected, "{path} by the {kind} of {name}");
            expected
        });
        for verdict in futures::future::join_all(calls).await {
            *judged.entry(verdict.map(|code| code as i32)).or_insert(0) += 1;
        }
    }
    for kind in [None, Some(Code::Unauthenticated), Some(Code::PermissionDenied)] {
        assert!(judged[&kind.map(|code| code as i32)] > 50, "{judged:?}");
    }
    // The admin of a hub may create and delete it.
    let admin = guarded.token("admin");
    for path in ["DeleteTaskHub", "CreateTaskHub"] {
        let path = format!("/TaskHubSidecarService/{path}");
        assert_eq!(call(&plain, &path, "a", Some(admin)).await, Ok(()), "{path}");
        let other = call(&plain, &path, "b", Some(admin)).await;
        assert_eq!(other, Err(Code::PermissionDenied), "{path}");
    }
}

/// R1.3, R1.4: what nobody serves is `UNIMPLEMENTED`, for those who are somebody.
#[tokio::test]
async fn what_is_not_in_the_table_reaches_nobody() {
    let guarded = Guarded::start(&[]).await;
    let channel = guarded.channel(None);
    let root = guarded.token("root");
    for path in [
        "/TaskHubSidecarService/NewCall",
        "/some.Service/Call",
        "/durabletask.protos.backend.v1.BackendService/Ping",
        "/microsoft.durabletask.sandboxes.SandboxActivities/DeclareSandboxWorkerProfile",
        // The peer port's calls are not served here.
        "/durahub.peer.v1.Admin/Status",
        "/durahub.peer.v1.Peer/Identify",
    ] {
        assert_eq!(call(&channel, path, "a", Some(root)).await, Err(Code::Unimplemented), "{path}");
        assert_eq!(call(&channel, path, "a", None).await, Err(Code::Unauthenticated), "{path}");
    }
}

/// A list of task hubs is no way to hear of others' hubs.
#[tokio::test]
async fn hubs_are_listed_to_those_who_have_a_role_in_them() {
    let guarded = Guarded::start(&[]).await;
    for (name, hubs) in
        [("reader", "a"), ("other", "b"), ("watcher", "a b"), ("root", "a b"), ("nobody", "")]
    {
        let token = guarded.token(name).to_owned();
        let (code, out, err) =
            guarded.run(&["hub", "list", "--output", "json"], &[("DURAHUB_TOKEN", &token)]);
        assert_eq!(code, 0, "{err}");
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        let listed = json["taskHubs"].as_array().unwrap().iter();
        let listed: Vec<_> = listed.map(|hub| hub["name"].as_str().unwrap()).collect();
        assert_eq!(listed.join(" "), hubs, "{name}");
    }
}

#[tokio::test]
async fn pages_pass_the_same_authorizer() {
    let guarded = Guarded::start(&[]).await;
    let at = guarded.server.addresses.http;
    let get = async |path: &str, token: Option<&str>| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut socket = tokio::net::TcpStream::connect(at).await.unwrap();
        let header = token.map(|token| format!("authorization: Bearer {token}\r\n"));
        let header = header.unwrap_or_default();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    for probe in ["/livez", "/readyz", "/health"] {
        assert_eq!(get(probe, None).await, 200, "{probe}");
    }
    for (path, name, status) in [
        ("/metrics", Some("watcher"), 200),
        ("/metrics", Some("root"), 200),
        ("/metrics", Some("reader"), 403),
        ("/metrics", None, 401),
        ("/", Some("nobody"), 200),
        ("/", None, 401),
        ("/elsewhere", Some("root"), 404),
        ("/elsewhere", Some("watcher"), 403),
        ("/elsewhere", None, 401),
    ] {
        let token = name.map(|name| guarded.token(name));
        assert_eq!(get(path, token).await, status, "{path} by {name:?}");
    }
    assert_eq!(get("/metrics", Some("wrong")).await, 401);
}
