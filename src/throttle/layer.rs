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
        if self.throttle.is_unlimited() || !is_counted(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let hub = request.headers().get("taskhub").and_then(|name| name.to_str().ok());
        let connection = request.extensions().get::<ConnectionInfo>();
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

/// Calls of clients; not those of workers, nor greetings and probes.
fn is_counted(path: &str) -> bool {
    let needs = rpc(path).map(|call| call.needs);
    matches!(needs, Some(Needs::Read | Needs::Contribute | Needs::Administer))
}

fn status(refused: &Refused) -> Status {
    let mut status = Status::resource_exhausted(refused.text.clone());
    status.metadata_mut().insert(PUSHBACK, MetadataValue::from(refused.retry_ms));
    status
}
