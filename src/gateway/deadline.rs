//! A call whose own deadline has passed answers `DEADLINE_EXCEEDED` (R2.35, R2.91).
//!
//! tonic watches the same deadline from further outside and would answer `CANCELLED`, which clients take for
//! a cancellation of their own: a wait then ends with the wrong error, or is not repeated. This layer is
//! there a moment earlier. What the call proposed may still be committed, as with any deadline.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Request, Response};

/// How much earlier than tonic: more than the grain of its timers.
const EARLIER: Duration = Duration::from_millis(3);

/// Watches the deadlines of the calls of every service of the port.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer;

impl<S> tower_layer::Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// A service whose calls end at their deadline.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
}

impl<S, In, Out> Service<Request<In>> for Deadline<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    Out: Default,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Out>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let left = left(request.headers());
        // From now on, as tonic counts.
        let until = left.map(|left| left.checked_sub(EARLIER).map(|left| Instant::now() + left));
        let answer = self.inner.call(request);
        let Some(until) = until else { return Box::pin(answer) };
        Box::pin(async move {
            let answered = match until {
                Some(until) => tokio::time::timeout_at(until, answer).await.ok(),
                // No timer is as quick as that: only what is answered at once is in time.
                None => answer.now_or_never(),
            };
            answered.unwrap_or_else(|| {
                Ok(Status::deadline_exceeded(
                    "the deadline of this call has passed; what it asked for may still be done",
                )
                .into_http())
            })
        })
    }
}

/// The time that a caller grants: at most eight digits and a unit. Anything else is ignored, as tonic does.
fn left(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_the_specification_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            left(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("99999999H").map(|time| time.as_secs()), Some(359_999_996_400));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("1n"), Some(Duration::from_nanos(1)));
        for wrong in ["", "S", "5", "5x", "-5S", "123456789S"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        assert_eq!(left(&HeaderMap::new()), None);
    }
}
