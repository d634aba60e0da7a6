//! The gRPC port's part: counts calls, and refuses those that are too many.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::Status;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::metadata::MetadataValue;

use super::{Refused, Throttle};
use crate::access::{Needs, rpc};
use crate::tls::ConnectionInfo;

/// The hub of callers that name none (R1.8).
const DEFAULT_HUB: &str = "default";
/// The call by which a connection shows that it is a worker's.
const WORK: &str = "/TaskHubSidecarService/GetWorkItems";
/// Where gRPC clients look for the time after which a call is worth repeating.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Counts the calls of the services that it wraps.
#[derive(Clone)]
pub struct ThrottleLayer(pub Throttle);

impl<S> tower_layer::Layer<S> for ThrottleLayer {
    type Service = Throttled<S>;

    fn layer(&self, inner: S) -> Throttled<S> {
        Throttled { inner, throttle: self.0.clone() }
    }
}

/// Services whose calls are counted.
#[derive(Clone)]
pub struct Throttled<S> {
    inner: S,
    throttle: Throttle,
}

impl<S, In, Out> Service<Request<In>> for Throttled<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    Out: Default + Send + 'static,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Out>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let connection = request.extensions().get::<ConnectionInfo>();
        if !is_counted(request.uri().path(), connection) || self.throttle.is_unlimited() {
            return Box::pin(self.inner.call(request));
        }
        let hub = request.headers().get("taskhub").and_then(|name| name.to_str().ok());
        match self.throttle.begin(hub.unwrap_or(DEFAULT_HUB), connection) {
            Err(refused) => Box::pin(std::future::ready(Ok(status(&refused).into_http()))),
            Ok(running) => {
                let answer = self.inner.call(request);
                Box::pin(async move {
                    let answer = answer.await;
                    drop(running);
                    answer
                })
            }
        }
    }
}

/// Calls of clients; not those of workers, nor greetings and probes. What both may read is a client's unless its
/// connection has asked for work.
fn is_counted(path: &str, connection: Option<&ConnectionInfo>) -> bool {
    match rpc(path).map(|call| call.needs) {
        Some(Needs::Read | Needs::Contribute | Needs::Administer) => true,
        Some(Needs::ReadOrWork) => !connection.is_some_and(Throttle::is_worker),
        Some(Needs::Work) => {
            if path == WORK {
                connection.into_iter().for_each(Throttle::note_worker);
            }
            false
        }
        _ => false,
    }
}

fn status(refused: &Refused) -> Status {
    let mut status = Status::resource_exhausted(refused.text.clone());
    status.metadata_mut().insert(PUSHBACK, MetadataValue::from(refused.retry_ms));
    status
}
