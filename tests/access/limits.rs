//! What one hub and one connection may ask, and what a client that floods meets.

use std::time::Duration;

use durahub_proto::wire;
use tonic::{Code, Status};

use super::support::actions::complete;
use super::support::client::PATIENCE;
use super::support::server::ServerOptions;
use super::support::{Client, Program, TestServer, WorkerOptions};

async fn get(client: &Client) -> Result<(), Status> {
    client.rpc().get_instance(wire::GetInstanceRequest::default()).await.map(drop)
}

pub(crate) async fn with_file(text: &str) -> (TestServer, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("durahub.toml");
    std::fs::write(&path, text).unwrap();
    let args = vec!["--config".to_owned(), path.display().to_string()];
    let options = ServerOptions { args, ..Default::default() };
    (TestServer::start_with(options).await, folder)
}

#[tokio::test]
async fn a_rate_is_kept_told_and_changed_while_the_node_runs() {
    let text = "task_hubs = ['a', 'b']\n[limits]\nhub_calls_per_second = 5\n";
    let (server, folder) = with_file(text).await;
    let (a, b) = (server.client_in("a"), server.client_in("b"));
    let refused = loop {
        if let Err(status) = get(&a).await {
            break status;
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("limits.hub_calls_per_second"), "{}", refused.message());
    let hint = refused.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
    let hint: u64 = hint.parse().unwrap();
    assert!((1..=1000).contains(&hint), "{hint}");
    // Another hub has a share of its own; workers are not counted.
    get(&b).await.unwrap();
    for _ in 0..50 {
        a.rpc().hello(()).await.unwrap();
        let none = wire::ActivityResponse { completion_token: "none".into(), ..Default::default() };
        let completed = a.rpc().complete_activity_task(none).await;
        assert!(completed.is_ok_and(|_| true), "a worker's call is not counted");
    }
    // The hint is right.
    while get(&a).await.is_ok() {}
    tokio::time::sleep(Duration::from_millis(hint + 300)).await;
    get(&a).await.unwrap();

    // The file changes: no restart, no signal.
    let path = folder.path().join("durahub.toml");
    let text = "task_hubs = ['a', 'b']\nlog_level = 'info,h2=debug'\ncache_mb = 64\n";
    std::fs::write(&path, text).unwrap();
    let change = async {
        // More calls at once than the old rate would let through.
        while !futures::future::join_all((0..20).map(|_| get(&a))).await.iter().all(Result::is_ok) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), change).await.expect("the new limits");
    assert!(server.log().contains("cache_mb"), "a setting that waits is named");
    get(&a).await.unwrap();
    assert!(server.log().contains("\"level\":\"DEBUG\""), "the new log level");
    // A file with a mistake changes nothing.
    std::fs::write(&path, "[limits]\nhub_calls_per_secnd = 1\n").unwrap();
    let told = async {
        while !server.log().contains("hub_calls_per_secnd") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.expect("the mistake is told");
    for _ in 0..20 {
        get(&a).await.unwrap();
    }
}

/// What the file says of instances holds for those that are there, without a restart.
#[tokio::test]
async fn limits_of_instances_and_retention_change_while_the_node_runs() {
    let (server, folder) = with_file("[limits]\nmax_payload_bytes = '1KiB'\n").await;
    let client = server.client();
    let program = Program::new().orchestrator("End", |_| vec![complete(1, "done")]);
    let _worker = program.run(&client, WorkerOptions::default());
    client.start("kept", "End", "").await;
    client.output("kept").await;
    let large = |id: &str| {
        let input = Some("x".repeat(2048).into());
        let (id, name) = (id.to_owned(), "End".to_owned());
        wire::CreateInstanceRequest { instance_id: id, name, input, ..Default::default() }
    };
    let refused = client.rpc().start_instance(large("large")).await.unwrap_err();
    assert!(refused.message().contains("limits.max_payload_bytes"), "{refused}");
    assert!(client.get("kept").await.is_some());

    let text = "[limits]\nmax_payload_bytes = '4KiB'\nmax_instance_id_length = 5\n\
        [retention]\ncompleted = '1s'\n";
    std::fs::write(folder.path().join("durahub.toml"), text).unwrap();
    let change = async {
        while client.get("kept").await.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, change).await.expect("the instance goes");
    client.rpc().start_instance(large("large")).await.unwrap();
    let refused = client.rpc().start_instance(large("longer")).await.unwrap_err();
    assert!(refused.message().contains("the limit is 5"), "{refused}");
    assert!(!server.log().contains("wait for a restart"));
}

#[tokio::test]
async fn a_connection_has_a_share_of_calls_at_the_same_time() {
    let server = TestServer::start_with_args(&["--connection-calls-in-flight=2"]).await;
    let one = server.client();
    one.start("slow", "Slow", "").await;
    let wait = || {
        let mut rpc = one.rpc();
        let request = wire::GetInstanceRequest { instance_id: "slow".into(), ..Default::default() };
        // The test's own calls may be in its way.
        tokio::spawn(async move {
            while rpc.wait_for_instance_completion(request.clone()).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
    };
    let waits = [wait(), wait()];
    let refused = loop {
        if let Err(status) = get(&one).await {
            break status;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("limits.connection_calls_in_flight"), "{refused}");
    // Another connection of the same client has its own.
    get(&server.client()).await.unwrap();
    // A call that its client gives up counts no more.
    waits.iter().for_each(tokio::task::JoinHandle::abort);
    let free = async {
        while get(&one).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), free).await.expect("room again");
}

/// A client is told how many streams it may have at the same time: its next call waits for the end of another one.
#[tokio::test]
async fn a_connection_has_so_many_streams_and_no_more() {
    let server = TestServer::start_with_args(&["--connection-streams=10"]).await;
    let (sender, running) = raw(&server).await;
    let told = async {
        while sender.current_max_send_streams() != 10 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("ten");
    running.abort();
    // Eleven calls on one connection are answered all the same: one of them comes after another.
    let client = server.client();
    let wait = |name: &str| {
        let (mut rpc, instance_id) = (client.rpc(), name.to_owned());
        let request = wire::GetInstanceRequest { instance_id, ..Default::default() };
        tokio::spawn(async move { rpc.wait_for_instance_completion(request).await.is_ok() })
    };
    client.start("open", "Nobody", "").await;
    let waits: Vec<_> = (0..11).map(|_| wait("open")).collect();
    server.client().terminate("open", "").await;
    for wait in waits {
        assert!(tokio::time::timeout(PATIENCE, wait).await.expect("an answer").unwrap());
    }
}

/// Histories are read by clients and by workers: a connection that has asked for work is a worker's.
#[tokio::test]
async fn histories_are_counted_for_clients_and_not_for_workers() {
    let server = TestServer::start_with_args(&["--connection-calls-per-second=5"]).await;
    let history = async |client: &Client| {
        let request = wire::StreamInstanceHistoryRequest::default();
        client.rpc().stream_instance_history(request).await.map(drop)
    };
    let (worker, client) = (server.client(), server.client());
    let stream = worker.rpc().get_work_items(wire::GetWorkItemsRequest::default()).await.unwrap();
    for _ in 0..50 {
        let answer = history(&worker).await;
        assert!(answer.is_ok() || answer.unwrap_err().code() != Code::ResourceExhausted);
    }
    let counted = async {
        loop {
            match history(&client).await {
                Err(status) if status.code() == Code::ResourceExhausted => break status,
                _ => {}
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, counted).await.expect("a client is counted");
    assert!(refused.message().contains("limits.connection_calls_per_second"), "{refused}");
    drop(stream);
}

/// A raw HTTP/2 connection, and the task that runs it.
async fn raw(
    server: &TestServer,
) -> (h2::client::SendRequest<bytes::Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let tcp = tokio::net::TcpStream::connect(server.addresses.grpc).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn hello(server: &TestServer) -> tonic::codegen::http::request::Builder {
    let uri = format!("http://{}/TaskHubSidecarService/Hello", server.addresses.grpc);
    tonic::codegen::http::Request::post(uri).header("content-type", "application/grpc")
}

/// CVE-2023-44487: streams that are opened and reset at once cost nothing that stays, and keep nobody out.
#[tokio::test]
async fn a_flood_of_resets_leaves_nothing_behind() {
    let server = TestServer::start_with_args(&["--cache-mb=16"]).await;
    server.client().rpc().hello(()).await.unwrap();
    let (mut sender, running) = raw(&server).await;
    let before = resident_mib(server.pid());
    for opened in 0..100_000 {
        sender = match sender.ready().await {
            Ok(sender) => sender,
            // The server has had enough of it, which is fine.
            Err(_) => break,
        };
        let request = hello(&server).body(()).unwrap();
        let Ok((_, mut stream)) = sender.send_request(request, false) else { break };
        stream.send_reset(h2::Reason::CANCEL);
        if opened % 20_000 == 0 {
            let others = async { server.client().rpc().hello(()).await };
            tokio::time::timeout(Duration::from_secs(10), others).await.expect("in time").unwrap();
        }
    }
    let after = resident_mib(server.pid());
    assert!(after < before + 20, "{before} MiB before, {after} MiB after");
    running.abort();
    server.client().rpc().hello(()).await.unwrap();
}

/// Streams that the server has to reset, because they break the protocol, end the connection.
#[tokio::test]
async fn a_flood_of_broken_streams_ends_its_connection_and_nothing_else() {
    let server = TestServer::start().await;
    let (mut sender, running) = raw(&server).await;
    let mut opened = 0_u32;
    while let Ok(ready) = sender.ready().await {
        sender = ready;
        // Five bytes are announced and none comes.
        let request = hello(&server).header("content-length", "5").body(()).unwrap();
        let Ok((answer, _)) = sender.send_request(request, true) else { break };
        let _ = answer.await;
        opened += 1;
        assert!(opened < 10_000, "nobody stops the flood");
    }
    let ended = running.await.unwrap().unwrap_err();
    assert_eq!(ended.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM), "{ended}");
    server.client().rpc().hello(()).await.unwrap();
}

/// A client that never reads its stream of work: what waits for it stays on the server's disk.
#[tokio::test]
async fn a_client_that_never_reads_costs_no_memory() {
    let (without, with) = (resident_after_starts(false).await, resident_after_starts(true).await);
    // 1,500 inputs of 64 KiB are 94 MiB.
    assert!(with < without + 30, "{without} MiB without such a client, {with} MiB with it");
}

/// Memory of a server after many starts with large inputs, with or without a stream that nobody reads.
async fn resident_after_starts(with_stream: bool) -> u64 {
    let server = TestServer::start_with_args(&["--cache-mb=16"]).await;
    let client = server.client();
    let (sender, _running) = raw(&server).await;
    let mut held = None;
    if with_stream {
        // A window that is never opened again, and room for thousands of items.
        let wanted = wire::GetWorkItemsRequest {
            max_concurrent_orchestration_work_items: 100_000,
            ..Default::default()
        };
        let message = prost::Message::encode_to_vec(&wanted);
        let mut frame = vec![0];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(message);
        let uri = format!("http://{}/TaskHubSidecarService/GetWorkItems", server.addresses.grpc);
        let request = tonic::codegen::http::Request::post(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (answer, mut stream) = sender.send_request(request, false).unwrap();
        stream.send_data(frame.into(), true).unwrap();
        held = Some((answer.await.unwrap(), sender));
    }
    let input = format!("\"{}\"", "x".repeat(64 << 10));
    for batch in (0..1500).collect::<Vec<u32>>().chunks(50) {
        let starts = batch.iter().map(|n| {
            let (client, input) = (client.clone(), input.clone());
            async move { client.start(&format!("i-{n}"), "Unread", &input).await }
        });
        futures::future::join_all(starts).await;
    }
    let resident = resident_mib(server.pid());
    drop(held);
    resident
}

/// A node that has used up its memory budget begins nothing new until it has more; what runs goes on.
#[tokio::test]
async fn memory_that_is_used_up_refuses_new_work_only() {
    let text = "cache_mb = 16\n";
    let (server, folder) = with_file(text).await;
    let client = server.client();
    let start = |id: String, bytes: usize| {
        let mut rpc = client.rpc();
        let input = Some("x".repeat(bytes).into());
        let name = "Waits".to_owned();
        let instance_id = id;
        let request =
            wire::CreateInstanceRequest { instance_id, name, input, ..Default::default() };
        async move { rpc.start_instance(request).await }
    };
    // More than the smallest budget, in memory that the log and the store keep.
    let mut started = 0;
    while started == 0 || resident_mib(server.pid()) < 80 {
        start(format!("i-{started}"), 256 << 10).await.unwrap();
        started += 1;
        assert!(started < 2_000, "{} MiB", resident_mib(server.pid()));
    }
    let path = folder.path().join("durahub.toml");
    std::fs::write(&path, format!("{text}memory_budget = '64MiB'\n")).unwrap();
    let mut tries = 0..600;
    let refused = loop {
        let number = tries.next().expect("a refusal");
        if let Err(status) = start(format!("t-{number}"), 1).await {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    for part in ["is short of memory: 0 of 67108864 bytes (memory_budget)", "takes nothing new"] {
        assert!(refused.message().contains(part), "{part:?} is missing in {}", refused.message());
    }
    assert!(refused.metadata().get("grpc-retry-pushback-ms").is_some());
    client.raise("i-0", "anything", "").await;
    let mut worker = super::support::Worker::connect(&client, Default::default()).await;
    let turn = worker.next_turn().await;
    let done = vec![super::support::actions::complete(1, "done")];
    worker.complete_turn(&turn, done).await;
    assert_eq!(client.output(&turn.request.instance_id).await, "done");

    std::fs::write(&path, format!("{text}memory_budget = '64GiB'\n")).unwrap();
    let again = async {
        while start("again".into(), 1).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("new work");
}

pub(crate) fn resident_mib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}
