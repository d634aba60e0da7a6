//! Spans of the real binary, as a collector takes them: OpenTelemetry's own messages and service, on a port of this
//! machine.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use durahub_proto::wire;
use futures::Stream;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use wire::orchestrator_action::OrchestratorActionType as Type;

use super::scrape;
use super::support::actions::{action, complete, schedule_task};
use super::support::client::PATIENCE;
use super::support::security::Ca;
use super::support::{Client, TestServer, Worker, WorkerOptions, ports};

/// The context of a client, that of an activity in the same trace, and both unrecorded.
const CLIENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TASK: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
const UNRECORDED: &str = "00-ffffffffffffffffffffffffffffffff-b7ad6b7169203331-00";

/// What a collector has taken.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    spans: Vec<Span>,
    resource: Vec<KeyValue>,
    authorization: Option<String>,
}

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let header = request.metadata().get("authorization").map(|it| it.to_str().unwrap().into());
        let mut kept = self.0.lock().unwrap();
        kept.authorization = header;
        for of_program in request.into_inner().resource_spans {
            kept.resource = of_program.resource.unwrap().attributes;
            for part in of_program.scope_spans {
                assert_eq!(part.scope.unwrap().name, "durahub");
                kept.spans.extend(part.spans);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector that runs until it is dropped.
struct Collector {
    address: SocketAddr,
    taken: Taken,
    serving: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Collector {
    async fn start() -> Collector {
        Collector::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(address: SocketAddr) -> Collector {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        Collector::over(address, TcpListenerStream::new(listener))
    }

    fn over<Io>(
        address: SocketAddr,
        incoming: impl Stream<Item = std::io::Result<Io>> + Send + 'static,
    ) -> Collector
    where
        Io: tokio::io::AsyncRead
            + tokio::io::AsyncWrite
            + tonic::transport::server::Connected
            + Send
            + Unpin
            + 'static,
    {
        let taken = Taken::default();
        let service = TraceServiceServer::new(taken.clone());
        let serving = Server::builder().add_service(service).serve_with_incoming(incoming);
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        Collector { address, taken, serving }
    }

    fn flag(&self) -> String {
        format!("--tracing-endpoint=http://{}", self.address)
    }

    /// The spans of an instance, once so many are there.
    async fn spans(&self, instance: &str, count: usize) -> Vec<Span> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let spans = self.spans_now(instance);
            if spans.len() >= count {
                assert_eq!(spans.len(), count, "{spans:#?}");
                return spans;
            }
            let all: Vec<_> = spans.iter().map(|span| &span.name).collect();
            assert!(tokio::time::Instant::now() < until, "{count} wanted, there are {all:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Those that name it, and their parts.
    fn spans_now(&self, instance: &str) -> Vec<Span> {
        let kept = self.taken.0.lock().unwrap();
        let names =
            |span: &&Span| text(&span.attributes, "durabletask.task.instance_id") == instance;
        let named: Vec<_> = kept.spans.iter().filter(names).cloned().collect();
        let ids: Vec<_> = named.iter().map(|span| span.span_id.clone()).collect();
        let parts = kept.spans.iter().filter(|span| ids.contains(&span.parent_span_id));
        let parts: Vec<_> = parts.filter(|span| !ids.contains(&span.span_id)).cloned().collect();
        named.into_iter().chain(parts).collect()
    }
}

/// The text of an attribute; empty without it.
fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        _ => "",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// Wait and commit of an item: within it, in this order.
fn parts_of<'a>(spans: &'a [Span], item: &Span) -> (&'a Span, &'a Span) {
    let mut parts = spans.iter().filter(|span| span.parent_span_id == item.span_id);
    let (wait, commit) = (parts.next().unwrap(), parts.next().unwrap());
    assert_eq!((wait.name.as_str(), commit.name.as_str()), ("server:wait", "server:commit"));
    assert!(parts.next().is_none());
    assert_eq!(wait.start_time_unix_nano, item.start_time_unix_nano);
    assert!(wait.end_time_unix_nano <= commit.start_time_unix_nano);
    assert!(commit.start_time_unix_nano <= commit.end_time_unix_nano);
    assert_eq!(commit.end_time_unix_nano, item.end_time_unix_nano);
    (wait, commit)
}

fn context(trace_parent: &str) -> wire::TraceContext {
    wire::TraceContext {
        trace_parent: trace_parent.into(),
        trace_state: Some("vendor=1".into()),
        ..Default::default()
    }
}

async fn start(client: &Client, id: &str, parent: Option<&str>) -> Result<(), Status> {
    let request = wire::CreateInstanceRequest {
        instance_id: id.into(),
        name: "Greet".into(),
        parent_trace_context: parent.map(context),
        ..Default::default()
    };
    client.rpc().start_instance(request).await.map(drop)
}

/// A start, two turns and an activity: each span below the context that the SDK gave for it.
#[tokio::test]
async fn spans_stand_below_the_contexts_of_the_sdks() {
    let collector = Collector::start().await;
    let folder = tempfile::tempdir().unwrap();
    let headers = folder.path().join("headers");
    std::fs::write(&headers, "authorization: Bearer key\n").unwrap();
    let server = TestServer::start_with_args(&[
        &collector.flag(),
        &format!("--tracing-headers-file={}", headers.display()),
        "--tracing-resource-attributes=deployment.environment.name=test",
    ])
    .await;
    let client = server.client();
    start(&client, "i1", Some(CLIENT)).await.unwrap();
    // Nobody is there to take it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let turn = worker.next_turn().await;
    let task = wire::ScheduleTaskAction {
        name: "Hello".into(),
        version: Some("2".into()),
        parent_trace_context: Some(context(TASK)),
        ..Default::default()
    };
    worker.complete_turn(&turn, vec![action(1, Type::ScheduleTask(task))]).await;
    let activity = worker.next_activity().await;
    // What goes to workers is what came from SDKs, and nothing of ours (R6.3, R6.11, R6.13).
    assert_eq!(activity.request.parent_trace_context, Some(context(TASK)));
    worker.complete_activity(&activity, "hi").await;
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, vec![complete(2, "done")]).await;
    assert_eq!(client.output("i1").await, "done");

    let spans = collector.spans("i1", 10).await;
    let mut ids: Vec<_> = spans.iter().map(|span| span.span_id.clone()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), spans.len());
    for span in &spans {
        assert_eq!(hex(&span.trace_id), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.trace_state, "vendor=1");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert_eq!(span.flags & 1, 1);
    }
    let started = named(&spans, "server:start:Greet");
    assert_eq!(started.len(), 1);
    assert_eq!(
        (hex(&started[0].parent_span_id).as_str(), started[0].kind),
        ("b7ad6b7169203331", 2)
    );
    let turns = named(&spans, "server:orchestration:Greet");
    assert_eq!(turns.len(), 2);
    for turn in &turns {
        assert_eq!(hex(&turn.parent_span_id), "b7ad6b7169203331");
        assert_eq!(text(&turn.attributes, "durabletask.type"), "orchestration");
        assert_eq!(text(&turn.attributes, "durahub.outcome"), "committed");
        assert_eq!(text(&turn.attributes, "durahub.hub"), "default");
        parts_of(&spans, turn);
    }
    let (wait, _) = parts_of(&spans, turns[0]);
    let waited = wait.end_time_unix_nano - wait.start_time_unix_nano;
    assert!(waited >= 100_000_000, "schedule to start: {waited} ns");
    let activities = named(&spans, "server:activity:Hello");
    assert_eq!(activities.len(), 1);
    assert_eq!(hex(&activities[0].parent_span_id), "00f067aa0ba902b7");
    assert_eq!(text(&activities[0].attributes, "durabletask.task.version"), "2");
    parts_of(&spans, activities[0]);

    let kept = collector.taken.0.lock().unwrap();
    assert_eq!(kept.authorization.as_deref(), Some("Bearer key"));
    for (key, value) in [
        ("service.name", "durahub"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", "1"),
        ("deployment.environment.name", "test"),
    ] {
        assert_eq!(text(&kept.resource, key), value);
    }
}

/// Without a context the spans of one execution are one trace; an unrecorded one leaves none, a text that is no
/// context is none (R6.11).
#[tokio::test]
async fn contexts_say_what_is_recorded_and_executions_without_one_are_traces() {
    let collector = Collector::start().await;
    let server = TestServer::start_with_args(&[&collector.flag()]).await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    for (id, parent) in [("silent", Some(UNRECORDED)), ("odd", Some("garbage")), ("own", None)] {
        start(&client, id, parent).await.unwrap();
        let turn = worker.next_turn_of(id).await;
        worker.complete_turn(&turn, vec![schedule_task(1, "Hello", "")]).await;
        let activity = worker.next_activity().await;
        worker.complete_activity(&activity, "hi").await;
        let turn = worker.next_turn_of(id).await;
        worker.complete_turn(&turn, vec![complete(2, "done")]).await;
    }
    let mut traces = Vec::new();
    for id in ["odd", "own"] {
        let spans = collector.spans(id, 10).await;
        let items: Vec<_> = spans.iter().filter(|it| !it.name.contains(":start:")).collect();
        let roots = items.iter().filter(|span| span.parent_span_id.is_empty());
        assert_eq!((items.len(), roots.count()), (9, 3));
        assert!(items.iter().all(|span| span.trace_id == items[0].trace_id), "one trace");
        traces.push(items[0].trace_id.clone());
    }
    assert_ne!(traces[0], traces[1]);
    // Spans are sent in the order of their ends: those of the first instance would be there.
    assert!(collector.spans_now("silent").is_empty());
    // A call of an instrumented gRPC client carries its context in a header.
    let mut request = Request::new(wire::CreateInstanceRequest {
        instance_id: "header".into(),
        name: "Nobody".into(),
        ..Default::default()
    });
    request.metadata_mut().insert("traceparent", CLIENT.parse().unwrap());
    client.rpc().start_instance(request).await.unwrap();
    let spans = collector.spans("header", 1).await;
    assert_eq!(hex(&spans[0].parent_span_id), "b7ad6b7169203331");
}

/// Signals and batches of entities; items that come back undone; calls that are refused.
#[tokio::test]
async fn what_goes_wrong_and_what_entities_do_is_told() {
    let collector = Collector::start().await;
    let server = TestServer::start_with_args(&[&collector.flag(), "--orchestrator-lease=1s"]).await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let signal = wire::SignalEntityRequest {
        instance_id: "@counter@1".into(),
        name: "add".into(),
        parent_trace_context: Some(context(CLIENT)),
        ..Default::default()
    };
    client.rpc().signal_entity(signal).await.unwrap();
    let batch = worker.next_entity().await;
    let success = wire::OperationResultSuccess::default();
    let success = wire::operation_result::ResultType::Success(success);
    let results = vec![wire::OperationResult { result_type: Some(success) }];
    let result = wire::EntityBatchResult { results, ..Default::default() };
    worker.complete_entity(&batch, result).await;
    let spans = collector.spans("@counter@1", 4).await;
    let signals = named(&spans, "server:signal:counter");
    assert_eq!(hex(&signals[0].parent_span_id), "b7ad6b7169203331");
    let batches = named(&spans, "server:entity:counter");
    assert!(batches[0].parent_span_id.is_empty());
    parts_of(&spans, batches[0]);

    start(&client, "late", Some(CLIENT)).await.unwrap();
    let turn = worker.next_turn_of("late").await;
    worker.abandon_turn(&turn).await;
    // It comes back after a while, and then nobody answers within the lease.
    worker.next_turn_of("late").await;
    let turn = worker.next_turn_of("late").await;
    worker.complete_turn(&turn, vec![complete(1, "done")]).await;
    let spans = collector.spans("late", 8).await;
    let outcomes = named(&spans, "server:orchestration:Greet").into_iter().map(|span| {
        let failed = span.status.as_ref().is_some_and(|status| status.code == 2);
        (text(&span.attributes, "durahub.outcome"), failed)
    });
    let outcomes: Vec<_> = outcomes.collect();
    assert_eq!(outcomes, [("given_back", true), ("lease_ended", true), ("committed", false)]);

    let id = "x".repeat(101);
    let refused = start(&client, &id, Some(CLIENT)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let spans = collector.spans(&id, 1).await;
    assert_eq!(spans[0].status.as_ref().unwrap().message, "InvalidArgument");
}

/// A collector that is away is told of once; work goes on, what is dropped is counted, and once it is there, so are
/// the spans.
#[tokio::test]
async fn a_collector_that_is_away_holds_up_nothing() {
    let address = ports::free();
    let server =
        TestServer::start_with_args(&[&format!("--tracing-endpoint=http://{address}")]).await;
    let client = server.client();
    let dropped = r#"durahub_spans_dropped_total{reason="unsent"}"#;
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut started = 0;
    while scrape(&server).await.get(dropped) < 20.0 {
        assert!(tokio::time::Instant::now() < until, "nothing is counted");
        start(&client, &format!("i{started}"), Some(CLIENT)).await.unwrap();
        started += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lines = |text: &str| server.log().matches(text).count();
    assert_eq!(lines("spans do not reach the collector"), 1, "{}", server.log());
    assert_eq!(scrape(&server).await.get("durahub_spans_sent_total"), 0.0);

    let collector = Collector::start_at(address).await;
    while lines("spans reach the collector again") == 0 {
        assert!(tokio::time::Instant::now() < until, "it is not found");
        start(&client, &format!("i{started}"), Some(CLIENT)).await.unwrap();
        started += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start(&client, "there", Some(CLIENT)).await.unwrap();
    collector.spans("there", 1).await;
    assert!(scrape(&server).await.get("durahub_spans_sent_total") > 0.0);
    assert_eq!(lines("spans do not reach the collector"), 1);
}

/// A collector that takes connections and never answers: spans wait, as many as may, and no call does.
#[tokio::test]
async fn spans_that_wait_are_bounded() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let flag = format!("--tracing-endpoint=http://{}", silent.local_addr().unwrap());
    let server = TestServer::start_with_args(&[&flag]).await;
    let client = server.client();
    // Refused before anything is stored, so that many of them cost little.
    let id = "x".repeat(101);
    for _ in 0..100 {
        let calls = (0..100).map(|_| start(&client, &id, Some(CLIENT)));
        for answer in futures::future::join_all(calls).await {
            assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
        }
    }
    let full = scrape(&server).await.get(r#"durahub_spans_dropped_total{reason="full"}"#);
    // 8,192 wait, and those that were taken out for a call.
    assert!((1.0..=1_808.0).contains(&full), "{full}");
}

/// What is left goes out when the node stops, over TLS.
#[tokio::test]
async fn the_last_spans_are_sent_when_the_node_stops() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("collectors");
    let ca_file = ca.write(&folder.path().join("ca.pem"));
    let pair = ca.issue(folder.path(), "collector", &["localhost"], "collector");
    let files = durahub::tls::ServerFiles { cert: pair.cert, key: pair.key, client_ca: None };
    let tls = durahub::tls::ServerTls::load(files, durahub::tls::HTTP2).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let never = durahub::tls::Plaintext::Never;
    let incoming = durahub::tls::accept(
        listener,
        Some((Arc::new(tls), never)),
        Default::default(),
        durahub::tls::HTTP2,
    );
    let collector = Collector::over(address, incoming);
    let mut server = TestServer::start_with_args(&[
        &format!("--tracing-endpoint=https://localhost:{}", address.port()),
        &format!("--tracing-ca-file={}", ca_file.display()),
    ])
    .await;
    start(&server.client(), "last", Some(CLIENT)).await.unwrap();
    assert!(server.terminate().await.success());
    assert_eq!(collector.spans_now("last").len(), 1);
}
