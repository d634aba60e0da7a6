//! Calls that last end with what allowed them: a token that expires, or is withdrawn, or a role that is taken
//! away, ends the worker streams and waits that it opened.
//!
//! A call is judged anew when files or keys were read again, and when its token is over. It then hears
//! `UNAUTHENTICATED` or `PERMISSION_DENIED` like one that begins now (R1.15); SDKs connect again with the token that
//! they have by then (R1.14). A worker's unfinished items are handed out again, as after any disconnect. What is
//! replaced and still counts ends nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};

use super::layer::{credentials, hub, status};
use super::{Access, Call, Credentials, Denied};
use crate::tls::{Certificate, ConnectionInfo};

/// Shortest time between two looks at a token: the grain of the times in tokens is a second.
const LOOK_MIN: Duration = Duration::from_millis(500);
/// Longest time between two looks.
const LOOK_MAX: Duration = Duration::from_secs(3600);

/// A call that lasts, and what its caller brought.
pub(super) struct Standing {
    access: Access,
    call: &'static Call,
    hub: String,
    authorization: Option<Vec<u8>>,
    certificate: Option<Arc<Certificate>>,
}

impl Standing {
    /// What to watch of a call; `None` for one that is short, or that nobody asks who makes it.
    pub(super) fn of<In>(
        access: &Access,
        call: Option<&'static Call>,
        request: &Request<In>,
    ) -> Option<Standing> {
        let call = call.filter(|call| call.lasts() && !access.is_open())?;
        let shown = request.extensions().get::<ConnectionInfo>();
        Some(Standing {
            access: access.clone(),
            call,
            hub: hub(request).to_owned(),
            authorization: credentials(request).authorization.map(<[u8]>::to_vec),
            certificate: shown.and_then(|info| info.certificate.clone()),
        })
    }

    /// Gives the answer of the call, which ends early if the call is no longer allowed.
    pub(super) async fn watch<E>(
        self,
        answer: impl Future<Output = Result<Response<Body>, E>>,
    ) -> Result<Response<Body>, E> {
        let mut ended: BoxFuture<'static, Status> = Box::pin(self.ended());
        let answer = tokio::select! {
            answer = answer => answer?,
            status = &mut ended => return Ok(status.into_http()),
        };
        Ok(answer.map(|body| Body::new(Watched { body, ended: Some(ended) })))
    }

    /// Ends once the call would not be allowed any more.
    async fn ended(self) -> Status {
        let clock = &self.access.0.clock;
        let mut changes = self.access.0.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let until = match self.judge() {
                Err(denied) => {
                    let (rpc, hub) = (self.call.name(), &self.hub);
                    tracing::info!(rpc, hub, reason = %denied, "an open call is no longer allowed");
                    return status(&denied, Some(self.call));
                }
                Ok(ends) => ends,
            };
            let now = clock.now();
            let least = now.saturating_add(LOOK_MIN.as_nanos() as i64);
            let most = now.saturating_add(LOOK_MAX.as_nanos() as i64);
            let look = until.unwrap_or(most).clamp(least, most);
            tokio::select! {
                () = clock.sleep_until(look) => {}
                // The sender lives as long as the access that is held here.
                _ = changes.changed() => {}
            }
        }
    }

    /// When the caller's credentials end, if they count now.
    fn judge(&self) -> Result<Option<i64>, Denied> {
        let names = self.certificate.as_ref().map(|shown| shown.names());
        let brought =
            Credentials { authorization: self.authorization.as_deref(), certificate: names };
        let who = self.access.identify(&brought)?;
        self.access.authorize(&who, self.call, &self.hub)?;
        Ok(who.ends)
    }
}

/// The body of an answer that may end early.
struct Watched {
    body: Body,
    /// `None` once it has.
    ended: Option<BoxFuture<'static, Status>>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(ended) = &mut this.ended else { return Poll::Ready(None) };
        if let Poll::Ready(status) = ended.as_mut().poll(cx) {
            this.ended = None;
            // The stream behind it goes now, not when the connection has taken the end.
            this.body = Body::empty();
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ended.is_none() || self.body.is_end_stream()
    }
}
