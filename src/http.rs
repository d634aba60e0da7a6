//! The HTTP port: what people, probes and Prometheus ask a node.
//!
//! | Path | Answer |
//! | --- | --- |
//! | `/livez` | 200 while the process answers; never depends on storage or quorum |
//! | `/readyz` | 200 when the node takes work, otherwise 503; every check on a line of its own |
//! | `/health` | the same as JSON, with version and phase |
//! | `/metrics` | metrics in the text format of Prometheus |
//! | `/` | what this is, and where the gRPC endpoint is |
//!
//! Every path passes the authorizer ([`Access::page`]): the probes are open to all, `/metrics` is if the
//! configuration says so, the rest asks who it is. Answers 401 and 403 say why.
//!
//! Served from the first moment, while the node starts, and until the last, while it drains. A connection that does
//! not make a whole request in time is closed. The dashboard and the REST interface bring routers of their own, which
//! are merged into [`router`]'s.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use futures::StreamExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::codegen::Service as _;

use crate::access::{Access, Credentials, Denied};
use crate::health::{Health, Phase};
use crate::telemetry::metrics::Metrics;
use crate::tls::{Connection, ConnectionInfo, Incoming};

/// Time for the head of a request, from when nothing else is under way on its connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Time for requests that are under way to end, when the port is closed.
const STOP_TIME: Duration = Duration::from_secs(1);
/// How often recorded values are moved into their buckets when nobody scrapes.
const TIDY_METRICS: Duration = Duration::from_secs(5);

/// What the pages of this port are about.
#[derive(Clone)]
pub struct Node {
    /// Health of the node.
    pub health: Health,
    /// Metrics of the process.
    pub metrics: Metrics,
    /// Where SDK clients and workers connect, as bound.
    pub grpc: SocketAddr,
    /// Who may see what.
    pub access: Access,
}

/// The pages of this room.
pub fn router(node: Node) -> Router {
    let access = node.access.clone();
    let pages = Router::new()
        .route("/", get(index))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(node);
    guarded(pages, access)
}

/// Pages behind the authorizer; also paths that none of them serves.
pub fn guarded(pages: Router, access: Access) -> Router {
    pages.layer(middleware::from_fn_with_state(access, judge))
}

async fn judge(
    State(access): State<Access>,
    Extension(connection): Extension<ConnectionInfo>,
    request: Request,
    next: Next,
) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION).cloned();
    let credentials = Credentials {
        authorization: authorization.as_ref().map(|value| value.as_bytes()),
        certificate: connection.certificate.as_ref().map(|shown| shown.names()),
    };
    match access.page(request.uri().path(), &credentials).await {
        Ok(()) => next.run(request).await,
        Err(denied @ Denied::Unknown(_)) => {
            let ask = [(header::WWW_AUTHENTICATE, "Bearer")];
            (StatusCode::UNAUTHORIZED, ask, format!("{denied}\n")).into_response()
        }
        Err(denied @ Denied::Forbidden(_)) => {
            (StatusCode::FORBIDDEN, format!("{denied}\n")).into_response()
        }
    }
}

/// Serves the router until `shutdown` ends; requests that are under way are finished first, if they do not take long.
///
/// Serving goes on through the drain, so `shutdown` here is the end of the drain, not its start.
pub async fn serve(
    mut incoming: Incoming,
    router: Router,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let tidying = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(TIDY_METRICS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            metrics.tidy();
        }
    });
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            Some(Ok(connection)) = incoming.next() => {
                connections.spawn(answer(connection, router.clone(), stopping.clone()));
            }
            Some(_) = connections.join_next() => {}
            () = &mut shutdown => break,
        }
    }
    drop((incoming, stop));
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_TIME, ended).await;
    tidying.abort();
}

/// Answers the requests of one connection, one after the other, until it ends or the port is closed.
async fn answer(connection: Connection, router: Router, mut stopping: watch::Receiver<()>) {
    let info = connection.info();
    let service = service_fn(move |mut request: axum::http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(info.clone());
        router.clone().call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(connection), service);
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        _ = stopping.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the HTTP port has ended");
    }
}

async fn index(State(node): State<Node>) -> Response {
    let text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Durahub</title>\
         <style>body{{font:16px/1.5 system-ui;margin:3rem auto;max-width:40rem;padding:0 1rem}}</style>\
         <h1>Durahub {}</h1><p>A scheduler for durable orchestrations. This node is <b>{}</b>.</p>\
         <p>SDK clients and workers connect to the gRPC endpoint at <code>{}</code>.</p>\
         <p><a href=\"/health\">health</a> · <a href=\"/readyz\">readiness</a> · <a href=\"/metrics\">metrics</a></p>\
         </html>\n",
        env!("CARGO_PKG_VERSION"),
        node.health.phase(),
        node.grpc,
    );
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

async fn readyz(State(node): State<Node>) -> Response {
    let report = node.health.report();
    let mut text = format!("{}\n", report.phase);
    for check in &report.checks {
        text += &format!("{}: {}\n", check.name, check.problem.as_deref().unwrap_or("ok"));
    }
    (status(report.phase), text).into_response()
}

async fn health(State(node): State<Node>) -> Response {
    let report = node.health.report();
    let checks: serde_json::Map<_, _> = report
        .checks
        .iter()
        .map(|check| (check.name.to_owned(), check.problem.as_deref().unwrap_or("ok").into()))
        .collect();
    let body = serde_json::json!({
        "status": report.phase.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "checks": checks,
    });
    (status(report.phase), [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
        .into_response()
}

async fn metrics(State(node): State<Node>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], node.metrics.render())
        .into_response()
}

fn status(phase: Phase) -> StatusCode {
    match phase {
        Phase::Ready => StatusCode::OK,
        Phase::Starting | Phase::Unready | Phase::Draining => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;

    use super::*;
    use crate::access::{AccessSettings, Audit};
    use crate::clock::Clock;

    /// Status line and body of a GET.
    async fn get(addr: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn probes_follow_the_health_and_liveness_does_not() {
        let health = Health::new(&["storage"]);
        let metrics = Metrics::detached().unwrap();
        let node = Node {
            health: health.clone(),
            metrics: metrics.clone(),
            grpc: "127.0.0.1:9".parse().unwrap(),
            access: Access::start(AccessSettings::default(), Audit::default(), Clock::system())
                .await
                .unwrap(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(
            crate::tls::accept(listener, None, Default::default(), crate::tls::HTTP1),
            router(node),
            metrics,
            async { stopped.await.unwrap_or(()) },
        ));

        let alive = ("HTTP/1.1 200 OK".to_owned(), "alive\n".to_owned());
        let busy = "HTTP/1.1 503 Service Unavailable".to_owned();
        assert_eq!(
            get(addr, "/readyz").await,
            (busy.clone(), "starting\nstorage: starting\n".to_owned())
        );
        assert_eq!(get(addr, "/livez").await, alive);

        health.pass("storage");
        assert_eq!(get(addr, "/readyz").await.1, "ready\nstorage: ok\n");
        let (line, body) = get(addr, "/health").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK");
        assert_eq!((&body["status"], &body["checks"]["storage"]), (&"ready".into(), &"ok".into()));
        assert!(get(addr, "/").await.1.contains("127.0.0.1:9"));
        assert_eq!(get(addr, "/metrics").await.0, "HTTP/1.1 200 OK");
        assert_eq!(get(addr, "/nothing").await.0, "HTTP/1.1 404 Not Found");

        health.drain();
        assert_eq!(get(addr, "/readyz").await, (busy, "draining\nstorage: ok\n".to_owned()));
        assert_eq!(get(addr, "/livez").await, alive);
        stop.send(()).unwrap();
        serving.await.unwrap();
    }
}
