//! What clients ask about many instances: queries and ids of ended instances.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use durahub_proto::wire::{self, OrchestrationStatus as Status};
use prost::Message as _;
use tonic::Code;

use crate::support::actions::{complete, fail, failure};
use crate::support::client::good;
use crate::support::{Client, Program, TestServer, WorkerOptions};

/// What every SDK receives at most (R1.23).
const MESSAGE: usize = 4 << 20;

/// A worker for orchestrations that end as their input says; `wait` ends when an event comes.
pub(crate) fn program() -> Program {
    Program::new().orchestrator("End", |history| match history.input() {
        "fail" => vec![fail(1, failure("Oops", "asked to"))],
        "wait" if history.raised("go").is_empty() => Vec::new(),
        input => vec![complete(1, input)],
    })
}

/// All pages of a query.
async fn pages(client: &Client, query: &wire::InstanceQuery) -> Vec<Vec<wire::OrchestrationState>> {
    let mut query = query.clone();
    let mut pages = Vec::new();
    loop {
        let request = wire::QueryInstancesRequest { query: Some(query.clone()) };
        let page = good("query", client.rpc().query_instances(request).await);
        assert!(page.encoded_len() < MESSAGE, "a page of {} bytes", page.encoded_len());
        pages.push(page.orchestration_state);
        let Some(token) = page.continuation_token else { return pages };
        assert_ne!(Some(&token), query.continuation_token.as_ref(), "a page goes on");
        query.continuation_token = Some(token);
    }
}

pub(crate) async fn ids(client: &Client, query: wire::InstanceQuery) -> Vec<String> {
    let states = pages(client, &query).await.concat();
    states.into_iter().map(|state| state.instance_id).collect()
}

/// All pages of ids of ended instances.
async fn ended(client: &Client, request: &wire::ListInstanceIdsRequest) -> Vec<Vec<String>> {
    let mut request = request.clone();
    // What two clients send on the first page (R2.82).
    request.last_instance_key = Some("".into());
    let mut pages = Vec::new();
    loop {
        let page = good("list ids", client.rpc().list_instance_ids(request.clone()).await);
        pages.push(page.instance_ids);
        let Some(key) = page.last_instance_key else { return pages };
        request.last_instance_key = Some(key);
    }
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

/// R2.73, R2.76 to R2.80: every filter, alone and together.
#[tokio::test]
async fn queries_return_what_their_filters_say() {
    let server = TestServer::start_with_args(&["--task-hubs", "default,other"]).await;
    let client = server.client();
    let worker = program().run(&client, WorkerOptions::default());
    for (id, input) in [("a-1", "ok"), ("a-2", "fail"), ("b-1", "ok"), ("b-2", "wait")] {
        client.start(id, "End", input).await;
        match input {
            "wait" => drop(client.wait_started(id).await),
            _ => drop(client.wait(id).await),
        }
    }
    let request = wire::CreateInstanceRequest {
        tags: [("team".to_owned(), "blue".to_owned())].into(),
        version: Some("2".into()),
        scheduled_start_timestamp: Some((SystemTime::now() + Duration::from_secs(3600)).into()),
        instance_id: "b-3".into(),
        name: "End".into(),
        input: Some("ok".into()),
        ..Default::default()
    };
    client.start_with(request).await;
    client.start("A-1", "End", "ok").await;
    client.wait("A-1").await;
    server.client_in("other").start("a-1", "End", "elsewhere").await;

    let query = wire::InstanceQuery::default;
    let all = pages(&client, &query()).await.concat();
    let shown: Vec<_> = all.iter().map(|state| state.instance_id.as_str()).collect();
    assert_eq!(shown, ["a-1", "a-2", "b-1", "b-2", "b-3", "A-1"], "by creation; one hub only");
    for state in &all {
        assert!(state.input.is_none() && state.output.is_none(), "{state:?} (R2.80)");
        assert!(state.custom_status.is_none() && state.failure_details.is_none(), "{state:?}");
        let time = |at: Option<prost_types::Timestamp>| at.map(|at| (at.seconds, at.nanos));
        let (created, updated) =
            (time(state.created_timestamp), time(state.last_updated_timestamp));
        assert!(created.is_some() && created <= updated, "{state:?} (R2.25, R2.29)");
        let whole = client.get(&state.instance_id).await.expect("exists");
        let same = wire::OrchestrationState {
            input: None,
            output: None,
            custom_status: None,
            failure_details: None,
            ..whole
        };
        assert_eq!(*state, same, "as GetInstance tells it (R2.25, R2.30)");
    }
    assert_eq!(all[4].tags["team"], "blue");
    assert_eq!(all[4].orchestration_status(), Status::Pending);

    let with = wire::InstanceQuery { fetch_inputs_and_outputs: true, ..query() };
    for state in pages(&client, &with).await.concat() {
        assert_eq!(Some(&state), client.get(&state.instance_id).await.as_ref(), "whole");
    }

    let of = |statuses: &[Status]| wire::InstanceQuery {
        runtime_status: statuses.iter().map(|status| *status as i32).collect(),
        ..query()
    };
    assert_eq!(ids(&client, of(&[Status::Completed])).await, ["a-1", "b-1", "A-1"]);
    assert_eq!(ids(&client, of(&[Status::Failed, Status::Running])).await, ["a-2", "b-2"]);
    assert_eq!(ids(&client, of(&[Status::Pending])).await, ["b-3"]);
    assert!(ids(&client, of(&[Status::Terminated])).await.is_empty());

    let prefixed =
        |prefix: &str| wire::InstanceQuery { instance_id_prefix: Some(prefix.into()), ..query() };
    assert_eq!(ids(&client, prefixed("a-")).await, ["a-1", "a-2"], "case-sensitive");
    assert_eq!(ids(&client, prefixed("")).await.len(), 6);
    assert!(ids(&client, prefixed("@")).await.is_empty());
    let both =
        wire::InstanceQuery { instance_id_prefix: Some("b-".into()), ..of(&[Status::Completed]) };
    assert_eq!(ids(&client, both).await, ["b-1"]);

    let created = |at: usize| all[at].created_timestamp;
    let window = wire::InstanceQuery {
        created_time_from: created(1),
        created_time_to: created(3),
        ..query()
    };
    assert_eq!(
        ids(&client, window.clone()).await,
        ["a-2", "b-1", "b-2"],
        "both ends included (R2.74)"
    );
    let narrow = wire::InstanceQuery { instance_id_prefix: Some("b-".into()), ..window };
    assert_eq!(ids(&client, narrow).await, ["b-1", "b-2"]);
    drop(worker);
}

/// R2.76: 21 instances in pages of 5 are 5 pages, whatever the order is.
#[tokio::test]
async fn no_page_is_empty_at_the_end() {
    let server = TestServer::start().await;
    let client = server.client();
    for n in 0..21 {
        client.start(&format!("i-{n:02}"), "Nobody", "").await;
    }
    for prefix in ["", "i-"] {
        for (size, expected) in [(5, vec![5, 5, 5, 5, 1]), (7, vec![7, 7, 7]), (0, vec![21])] {
            let query = wire::InstanceQuery {
                max_instance_count: size,
                instance_id_prefix: Some(prefix.into()),
                ..Default::default()
            };
            let pages = pages(&client, &query).await;
            assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            let all: BTreeSet<_> = pages.concat().into_iter().map(|it| it.instance_id).collect();
            assert_eq!(all.len(), 21, "each once");
        }
    }
    let query = wire::InstanceQuery { max_instance_count: i32::MAX, ..Default::default() };
    assert_eq!(pages(&client, &query).await.len(), 1, "what one client sends by default (R2.75)");
}

/// R1.23, R2.75: pages end by bytes too; an instance that no message can hold is listed without payloads.
#[tokio::test]
async fn pages_fit_into_a_message() {
    let server = TestServer::start_with_args(&["--max-payload-bytes", "8MiB"]).await;
    let client = server.client();
    let large = "x".repeat(900_000);
    for n in 0..9 {
        client.start(&format!("large-{n}"), "Nobody", &large).await;
    }
    client.start("too-large", "Nobody", &"y".repeat(5 << 20)).await;
    let query = wire::InstanceQuery { fetch_inputs_and_outputs: true, ..Default::default() };
    let pages = pages(&client, &query).await;
    assert!(pages.len() >= 3 && pages.iter().all(|page| !page.is_empty()), "{}", pages.len());
    let all = pages.concat();
    let shown: Vec<_> = all.iter().map(|state| state.instance_id.clone()).collect();
    assert_eq!(shown.len(), 10);
    for state in &all[..9] {
        assert_eq!(state.input.as_ref().map(|input| input.len()), Some(900_000));
    }
    assert_eq!((all[9].instance_id.as_str(), &all[9].input), ("too-large", &None));
    let request =
        wire::GetInstanceRequest { instance_id: "too-large".into(), get_inputs_and_outputs: true };
    let refused = client.rpc().get_instance(request).await.expect_err("no client can receive it");
    assert_eq!(refused.code(), Code::ResourceExhausted);
}

/// R2.81 to R2.83: ended instances by the time of their end; a window includes its begin and not its end.
#[tokio::test]
async fn ended_instances_are_listed_in_the_order_of_their_end() {
    let server = TestServer::start().await;
    let client = server.client();
    let worker = program().run(&client, WorkerOptions::default());
    client.start("late", "End", "wait").await;
    client.start("never", "End", "wait").await;
    for n in 0..10 {
        let id = format!("e{n}");
        client.start(&id, "End", if n % 3 == 0 { "fail" } else { "ok" }).await;
        client.wait(&id).await;
    }
    client.raise("late", "go", "").await;
    client.wait("late").await;

    let expected: Vec<_> = (0..10).map(|n| format!("e{n}")).chain(["late".to_owned()]).collect();
    let all = wire::ListInstanceIdsRequest { page_size: 4, ..Default::default() };
    let pages = ended(&client, &all).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 3]);
    assert_eq!(pages.concat(), expected);
    let failed = wire::ListInstanceIdsRequest {
        runtime_status: vec![Status::Failed as i32, Status::Running as i32],
        ..Default::default()
    };
    assert_eq!(ended(&client, &failed).await, [["e0", "e3", "e6", "e9"]]);
    let completed = async |id: &str| client.get(id).await.expect("exists").completed_timestamp;
    let window = wire::ListInstanceIdsRequest {
        completed_time_from: completed("e2").await,
        completed_time_to: completed("e5").await,
        ..Default::default()
    };
    assert_eq!(ended(&client, &window).await, [["e2", "e3", "e4"]]);
    let running = wire::ListInstanceIdsRequest {
        runtime_status: vec![Status::Running as i32],
        ..Default::default()
    };
    assert_eq!(ended(&client, &running).await, [Vec::<String>::new()], "terminal ones only");
    drop(worker);
}

/// R2.78, S12: pages while instances are started, end and begin anew. What was there all the time comes
/// exactly once, and what was acknowledged before the first page comes.
#[tokio::test]
async fn paging_is_stable_while_everything_moves() {
    let server = TestServer::start().await;
    let client = server.client();
    let worker = program().run(&client, WorkerOptions::default().serving(&["End"], &[]));
    let stay: Vec<_> = (0..60).map(|n| format!("stay-{n:02}")).collect();
    for id in &stay {
        client.start(id, "Nobody", "").await;
    }
    let noise = tokio::spawn({
        let client = client.clone();
        async move {
            for n in 0.. {
                client.start(&format!("noise-{n}"), "End", "ok").await;
                // The same id again and again: the finished one is replaced.
                let again = wire::CreateInstanceRequest {
                    instance_id: "again".into(),
                    name: "End".into(),
                    input: Some("ok".into()),
                    ..Default::default()
                };
                let _ = client.rpc().start_instance(again).await;
            }
        }
    });
    for round in 0..5 {
        let fresh = format!("fresh-{round}");
        client.start(&fresh, "Nobody", "").await;
        for prefix in [None, Some("stay-".into())] {
            let query = wire::InstanceQuery {
                max_instance_count: 9,
                instance_id_prefix: prefix.clone(),
                runtime_status: vec![Status::Pending as i32],
                ..Default::default()
            };
            let states = pages(&client, &query).await.concat();
            assert!(states.iter().all(|state| state.orchestration_status() == Status::Pending));
            let mut seen: Vec<_> = states.into_iter().map(|state| state.instance_id).collect();
            if prefix.is_none() {
                assert!(seen.contains(&fresh), "acknowledged before the query (S12)");
            }
            seen.retain(|id| id.starts_with("stay-"));
            assert_eq!(sorted(seen), stay, "each exactly once");
        }
    }
    noise.abort();
    drop(worker);
}

/// Bad input names its field; a token belongs to one kind of list.
#[tokio::test]
async fn bad_input_of_lists_is_refused_by_name() {
    let server = TestServer::start().await;
    let client = server.client();
    for n in 0..3 {
        client.start(&format!("i-{n}"), "Nobody", "").await;
    }
    let query = async |query| {
        let request = wire::QueryInstancesRequest { query: Some(query) };
        client.rpc().query_instances(request).await
    };
    let first = wire::InstanceQuery { max_instance_count: 1, ..Default::default() };
    let token = query(first).await.expect("a page").into_inner().continuation_token;
    assert!(token.is_some());

    let mut refused = Vec::new();
    let bad = wire::InstanceQuery { max_instance_count: -1, ..Default::default() };
    refused.push(("query.maxInstanceCount", query(bad).await.expect_err("negative")));
    let bad = wire::InstanceQuery { runtime_status: vec![3, 99], ..Default::default() };
    refused.push(("query.runtimeStatus", query(bad).await.expect_err("no status")));
    let bad = wire::ListInstanceIdsRequest { runtime_status: vec![-1], ..Default::default() };
    let answer = client.rpc().list_instance_ids(bad).await;
    refused.push(("runtimeStatus", answer.expect_err("no status")));
    for garbage in ["garbage", "!!", "AAAA"] {
        let bad =
            wire::InstanceQuery { continuation_token: Some(garbage.into()), ..Default::default() };
        refused.push(("query.continuationToken", query(bad).await.expect_err("garbage")));
    }
    let bad = wire::InstanceQuery {
        continuation_token: token.clone(),
        instance_id_prefix: Some("i-".into()),
        ..Default::default()
    };
    refused.push(("query.continuationToken", query(bad).await.expect_err("of another order")));
    let bad = wire::ListInstanceIdsRequest { page_size: -5, ..Default::default() };
    let answer = client.rpc().list_instance_ids(bad).await;
    refused.push(("pageSize", answer.expect_err("negative")));
    let bad = wire::ListInstanceIdsRequest { last_instance_key: token, ..Default::default() };
    let answer = client.rpc().list_instance_ids(bad).await;
    refused.push(("lastInstanceKey", answer.expect_err("of another list")));
    for (field, status) in refused {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with(&format!("{field}:")), "{status}");
    }
    let nowhere = server.client_in("nowhere");
    let request = wire::QueryInstancesRequest::default();
    let status = nowhere.rpc().query_instances(request).await.expect_err("unknown hub");
    assert_eq!(status.code(), Code::NotFound, "{status}");
    // No query at all is one without conditions.
    let request = wire::QueryInstancesRequest::default();
    let page = good("query", client.rpc().query_instances(request).await);
    assert_eq!(page.orchestration_state.len(), 3);
}
