//! Counts calls and how long they took, by the name of the call.
//!
//! The handles of every call that the protocol knows are made once; whatever else a client may think of
//! is counted under one name, so that nobody can fill the memory of a Prometheus from outside.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use metrics::{Counter, Histogram, counter, histogram};
use prost::Message as _;
use tonic::Code;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};

use crate::telemetry::metrics as names;

/// Calls that last as long as their caller likes: their time says nothing about the server.
const UNTIMED: [&str; 3] = ["GetWorkItems", "WaitForInstanceStart", "WaitForInstanceCompletion"];
/// Stands for calls that are no part of the protocol: health, reflection, mistakes.
const OTHER: &str = "(other)";
/// gRPC codes by number, as the specification spells them.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Counts the calls of the services that it wraps.
#[derive(Clone)]
pub struct CallsLayer(Arc<Meters>);

struct Meters {
    by_path: BTreeMap<String, Meter>,
    other: Meter,
}

struct Meter {
    rpc: Arc<str>,
    seconds: Option<Histogram>,
    by_code: [OnceLock<Counter>; CODES.len()],
}

impl Meter {
    fn new(rpc: &str) -> Meter {
        let rpc: Arc<str> = rpc.into();
        let seconds = (!UNTIMED.contains(&&*rpc) && &*rpc != OTHER)
            .then(|| histogram!(names::REQUEST_SECONDS, "rpc" => rpc.clone()));
        Meter { rpc, seconds, by_code: Default::default() }
    }

    fn count(&self, code: Code, began: Instant) {
        let index = code as usize;
        let counter = self.by_code[index].get_or_init(
            || counter!(names::REQUESTS, "rpc" => self.rpc.clone(), "code" => CODES[index]),
        );
        counter.increment(1);
        if let Some(seconds) = &self.seconds {
            seconds.record(began.elapsed());
        }
    }
}

impl CallsLayer {
    /// Makes the handles of every call of the protocol.
    #[expect(
        clippy::new_without_default,
        reason = "it registers metrics, which a default should not"
    )]
    pub fn new() -> CallsLayer {
        CallsLayer(Arc::new(Meters { by_path: meters(), other: Meter::new(OTHER) }))
    }
}

/// A meter for each method of the services that are generated from our `.proto` files.
fn meters() -> BTreeMap<String, Meter> {
    let sets = [durahub_proto::DESCRIPTORS, durahub_proto::OWN_DESCRIPTORS];
    let files = sets.into_iter().filter_map(|set| prost_types::FileDescriptorSet::decode(set).ok());
    let mut meters = BTreeMap::new();
    for file in files.flat_map(|set| set.file) {
        let package = match file.package() {
            "" => String::new(),
            package => format!("{package}."),
        };
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{package}{}/{}", service.name(), method.name());
                meters.insert(path, Meter::new(method.name()));
            }
        }
    }
    meters
}

impl<S> tower_layer::Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner, meters: self.0.clone() }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub struct Calls<S> {
    inner: S,
    meters: Arc<Meters>,
}

impl<S, In, Out> Service<Request<In>> for Calls<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Out>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let (meters, began) = (self.meters.clone(), Instant::now());
        let path = request.uri().path().to_owned();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            meters.by_path.get(&path).unwrap_or(&meters.other).count(code_of(&answer), began);
            Ok(answer)
        })
    }
}

/// A refusal carries its code in the headers; an answer that has none there is on its way.
fn code_of<Body>(answer: &Response<Body>) -> Code {
    let code = answer.headers().get("grpc-status");
    code.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_own_names() {
        for (number, name) in CODES.into_iter().enumerate() {
            let code = Code::from(i32::try_from(number).unwrap());
            let spelled: String = name
                .split('_')
                .map(|part| part[..1].to_owned() + &part[1..].to_lowercase())
                .collect();
            assert_eq!(format!("{code:?}"), spelled, "{number}");
        }
    }

    #[test]
    fn every_call_of_the_protocol_has_a_meter_and_waits_have_no_time() {
        let meters = meters();
        assert!(meters.len() > 30, "{}", meters.len());
        for (rpc, timed) in [("StartInstance", true), ("GetWorkItems", false)] {
            let meter = &meters[&format!("/TaskHubSidecarService/{rpc}")];
            assert_eq!((&*meter.rpc, meter.seconds.is_some()), (rpc, timed));
        }
    }
}
