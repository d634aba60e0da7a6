//! The gRPC port's part: counts calls, refuses those that are too many, takes requests in as there is room for them,
//! and gives handlers the room that the connection has for answers.

use std::future::ready;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::metadata::MetadataValue;

use super::arriving::{Arriving, Form, Head, Kept, Terms};
use super::{Known, Refused, Throttle, unread};
use crate::access::{Needs, rpc};
use crate::tls::ConnectionInfo;

/// The hub of callers that name none (R1.8).
const DEFAULT_HUB: &str = "default";
/// The call by which a connection shows that it is a worker's.
const WORK: &str = "/TaskHubSidecarService/GetWorkItems";
/// The only call whose request is more than one message.
const TALK: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
/// Headers up to so many bytes take no room: what they cost is the call.
const FREE_HEAD: usize = 4 << 10;
/// When it is worth asking again after too many requests that wait, in milliseconds.
const BUSY_RETRY: u64 = 1000;
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

impl<S> Service<Request<Body>> for Throttled<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let needs = rpc(request.uri().path()).map(|call| call.needs);
        let connection = request.extensions().get::<ConnectionInfo>();
        let is_counted = self.is_counted(request.uri().path(), needs, connection);
        let mut running = None;
        if is_counted && !self.throttle.is_unlimited() {
            let hub = request.headers().get("taskhub").and_then(|name| name.to_str().ok());
            match self.throttle.begin(hub.unwrap_or(DEFAULT_HUB), connection) {
                Err(refused) => return Box::pin(ready(Ok(status(&refused).into_http()))),
                Ok(begun) => running = Some(begun),
            }
        }
        let known = connection.map(|connection| self.throttle.known(connection));
        // The answers of the others are small, or are handed out as there is room.
        if !matches!(needs, Some(Needs::Work | Needs::Contribute)) {
            let unread = known.as_ref().map(|known| known.unread.clone());
            request.extensions_mut().insert(unread.unwrap_or_default());
        }
        let mut kept = None;
        if let Some(known) = known {
            match self.take_in(request, needs, &known) {
                Err(refused) => return Box::pin(ready(Ok(refused.into_http()))),
                Ok(taken) => (request, kept) = taken,
            }
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop((running, kept));
            answer.map(unread::tie)
        })
    }
}

impl<S> Throttled<S> {
    /// Has a request arrive as there is room for it. What comes with it lives until it is answered.
    fn take_in(
        &self,
        request: Request<Body>,
        needs: Option<Needs>,
        known: &Known,
    ) -> Result<(Request<Body>, Option<Kept>), Status> {
        let is_probe = needs == Some(Needs::Nothing);
        let (rooms, longest, time) = self.throttle.terms(known, needs == Some(Needs::Work));
        let head = match bytes_of(request.headers()) {
            ..=FREE_HEAD => None,
            // Of somebody who may be anybody.
            _ if is_probe => {
                let text = format!("headers of this call have at most {FREE_HEAD} bytes");
                return Err(Status::resource_exhausted(text));
            }
            bytes => Some(Head { bytes, _place: rooms.place_of_head(bytes).ok_or_else(crowded)? }),
        };
        let form = match request.uri().path() {
            TALK => {
                let text = "too many calls of this kind on this connection";
                let place = known.talks.clone().try_acquire_owned();
                Form::Many { _place: place.map_err(|_| busy(text.to_owned()))? }
            }
            _ if is_probe => Form::Probe,
            _ => Form::One,
        };
        let kept = Kept::default();
        // Those handlers keep the message until they answer; the others want little of it, and may wait for long.
        let lasts = matches!(needs, Some(Needs::Work | Needs::Contribute | Needs::Administer))
            .then(|| kept.clone());
        let terms = Terms { form, head, rooms, longest, time };
        let mut request = request.map(|body| Body::new(Arriving::new(body, terms, kept)));
        if let Some(kept) = lasts.clone() {
            request.extensions_mut().insert(kept);
        }
        Ok((request, lasts))
    }

    /// Calls of clients; not those of workers, nor greetings and probes. What both may read is a client's unless its
    /// connection has asked for work.
    fn is_counted(
        &self,
        path: &str,
        needs: Option<Needs>,
        connection: Option<&ConnectionInfo>,
    ) -> bool {
        match needs {
            Some(Needs::Read | Needs::Contribute | Needs::Administer) => true,
            Some(Needs::ReadOrWork) => {
                !connection.is_some_and(|connection| self.throttle.is_worker(connection))
            }
            Some(Needs::Work) => {
                if path == WORK {
                    connection.into_iter().for_each(|connection| {
                        self.throttle.note_worker(connection);
                    });
                }
                false
            }
            _ => false,
        }
    }
}

/// Bytes of all names and values.
fn bytes_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

fn status(refused: &Refused) -> Status {
    let mut status = Status::resource_exhausted(refused.text.clone());
    status.metadata_mut().insert(PUSHBACK, MetadataValue::from(refused.retry_ms));
    status
}

/// Too much waits already.
pub(super) fn crowded() -> Status {
    busy("too many requests wait for room at this node (limits.request_bytes)".to_owned())
}

/// There is no room, and will be soon.
fn busy(text: String) -> Status {
    status(&Refused { text, retry_ms: BUSY_RETRY })
}

#[cfg(test)]
mod tests;
