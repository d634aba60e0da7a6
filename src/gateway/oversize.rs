//! A request above the size limit answers `RESOURCE_EXHAUSTED` (R1.25).
//!
//! tonic refuses such a message before any handler sees it, with `OUT_OF_RANGE` and a text about decoding.
//! This layer gives that one refusal the code and the words that clients can act on.

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::Code;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderValue, Response};

/// Wraps every service of the port.
#[derive(Clone, Debug)]
pub struct OversizeLayer {
    /// The limit to name, in bytes.
    pub limit: usize,
}

impl<S> tower_layer::Layer<S> for OversizeLayer {
    type Service = Oversize<S>;

    fn layer(&self, inner: S) -> Oversize<S> {
        Oversize { inner, limit: self.limit }
    }
}

/// A service whose refusals are translated.
#[derive(Clone, Debug)]
pub struct Oversize<S> {
    inner: S,
    limit: usize,
}

impl<S, Request, Body> Service<Request> for Oversize<S>
where
    S: Service<Request, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (answer, limit) = (self.inner.call(request), self.limit);
        Box::pin(async move { answer.await.map(|response| translate(response, limit)) })
    }
}

fn translate<Body>(mut response: Response<Body>, limit: usize) -> Response<Body> {
    const STATUS: &str = "grpc-status";
    const MESSAGE: &str = "grpc-message";
    let headers = response.headers();
    let out_of_range = (Code::OutOfRange as i32).to_string();
    let is_refusal =
        headers.get(STATUS).is_some_and(|status| status.as_bytes() == out_of_range.as_bytes())
            && headers
                .get(MESSAGE)
                .and_then(|text| text.to_str().ok())
                .is_some_and(|text| text.contains("message%20length%20too%20large"));
    if is_refusal {
        let code = HeaderValue::from(Code::ResourceExhausted as i32);
        let text = format!(
            "the request is larger than the {limit} bytes that this server accepts \
             (limits.max_message_bytes); send less at once"
        );
        let text = text.replace(' ', "%20");
        response.headers_mut().insert(STATUS, code);
        if let Ok(text) = HeaderValue::try_from(text) {
            response.headers_mut().insert(MESSAGE, text);
        }
    }
    response
}
