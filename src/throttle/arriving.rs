//! A request as it arrives: the message in it is read on when there is room for all of it.
//!
//! The first bytes of a message say how long it is. Room for all of it is taken then ([`room`](super::room)); until
//! there is some, nothing more is read, and HTTP/2 holds its sender. The room goes with the request until it is
//! answered, where a handler may keep the message as long, and on with whatever goes on without its caller; where it
//! does not, as in waits, until it is read.
//!
//! Large headers count as a part of the first message. Until it begins they have a place of their own.
//!
//! Whoever has room has to use it: a message of which nothing comes for a while is ended, and so is one of which
//! little comes while others wait. The time in which a message waits itself does not count.
//!
//! A message of up to [`FREE`] bytes without large headers takes no room: what it costs is the call, not its bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;

use super::layer::crowded;
use super::room::{Asked, Place, Rooms, Taken};

/// Longest message that takes no room, in bytes.
const FREE: usize = 1 << 10;
/// Longest message of a probe, in bytes: it holds the name of a service.
const PROBE: usize = 4 << 10;
/// What has to come of a message within its time while others wait: so many bytes, of a large one this part, or the rest.
const ENOUGH: u64 = 1 << 20;
const ENOUGH_PART: u64 = 8;

/// What a request may hold.
#[derive(Debug)]
pub(super) enum Form {
    /// One message.
    One,
    /// One short message of somebody who may be anybody.
    Probe,
    /// Messages one after the other, on one of the few streams of a connection that may.
    Many { _place: OwnedSemaphorePermit },
}

/// Headers that take room.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) bytes: usize,
    pub(super) _place: Place,
}

/// What holds for one request.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) form: Form,
    /// Its headers, if they are large, until its first message begins.
    pub(super) head: Option<Head>,
    pub(super) rooms: Rooms,
    /// Longest message that is taken, in bytes. Whoever reads a longer one refuses it by its length.
    pub(super) longest: usize,
    /// Within this time something has to come of a message that has room.
    pub(super) time: Duration,
}

/// The room that a request has, for as long as any of its handles lives.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<Mutex<Option<Taken>>>);

impl Kept {
    /// That of a request, for whatever holds the message when its caller has gone.
    #[must_use]
    pub fn of(extensions: &tonic::Extensions) -> Kept {
        extensions.get::<Kept>().cloned().unwrap_or_default()
    }

    fn set(&self, taken: Option<Taken>) {
        *self.0.lock() = taken;
    }
}

/// The body of a request.
pub(super) struct Arriving {
    body: Body,
    terms: Terms,
    messages: Messages,
    kept: Kept,
    has_room: bool,
    /// Bytes for which room was taken last.
    length: u64,
    waits: Option<Waits>,
    /// Bytes so far.
    came: u64,
    watch: Option<Watch>,
    is_over: bool,
}

/// What a message waits for, and what has come meanwhile.
struct Waits {
    room: BoxFuture<'static, Taken>,
    data: Bytes,
    _head: Option<Head>,
}

/// When it is looked next whether enough has come, and what there was the last time.
struct Watch {
    next: Pin<Box<Sleep>>,
    before: u64,
}

impl Arriving {
    /// Reads a body on these terms. Room that it takes is in `kept` for as long as either lives.
    pub(super) fn new(body: Body, terms: Terms, kept: Kept) -> Arriving {
        Arriving {
            body,
            terms,
            messages: Messages::default(),
            kept,
            has_room: false,
            length: 0,
            waits: None,
            came: 0,
            watch: None,
            is_over: false,
        }
    }

    /// Looks at what has come. It is handed on now, later, or not at all.
    fn take(&mut self, data: Bytes) -> Option<Result<Bytes, Status>> {
        self.came += data.len() as u64;
        let began = self.messages.read(&data);
        let is_complete = self.messages.is_between();
        let length = match &self.terms.form {
            Form::Probe if began.is_some_and(|length| length > PROBE) => {
                let text = format!("a message of this call has at most {PROBE} bytes");
                return Some(Err(Status::resource_exhausted(text)));
            }
            Form::One | Form::Probe if self.messages.begun > 1 => {
                return Some(Err(Status::invalid_argument(
                    "a request of this call is one message",
                )));
            }
            Form::Probe => None,
            Form::One => began,
            Form::Many { .. } => {
                if is_complete || began.is_some() {
                    self.hold(None);
                }
                began.filter(|_| !is_complete)
            }
        };
        let head = self.terms.head.take_if(|_| self.messages.begun > 0);
        let head_bytes = head.as_ref().map_or(0, |head| head.bytes);
        let takes = |length: &usize| *length <= self.terms.longest && length + head_bytes > FREE;
        let Some(length) = length.filter(takes) else { return Some(Ok(data)) };
        let length = length + head_bytes;
        self.length = length as u64;
        match self.terms.rooms.take(length) {
            Asked::Taken(taken) => {
                self.hold(Some(taken));
                Some(Ok(data))
            }
            Asked::Waits(room) => {
                self.waits = Some(Waits { room, data, _head: head });
                None
            }
            Asked::Refused => Some(Err(crowded())),
        }
    }

    fn hold(&mut self, taken: Option<Taken>) {
        self.has_room = taken.is_some();
        self.watch = None;
        self.kept.set(taken);
    }

    /// Whether what has come is too little by now.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if !self.has_room && self.terms.head.is_none() {
            return Poll::Pending;
        }
        let (time, came) = (self.terms.time, self.came);
        let watch = self.watch.get_or_insert_with(|| Watch {
            next: Box::pin(tokio::time::sleep(time)),
            before: came,
        });
        loop {
            ready!(watch.next.as_mut().poll(cx));
            let others_wait = self.terms.rooms.others_wait();
            let enough = if others_wait { ENOUGH.max(self.length / ENOUGH_PART) } else { 1 };
            if came - watch.before < enough {
                let why = match others_wait {
                    true => "too little of it came, and others wait for the room that it has",
                    false => "nothing more of it came",
                };
                return Poll::Ready(Status::deadline_exceeded(format!(
                    "the rest of this request did not come in time: within {} (limits.request_time) {why}",
                    humantime::format_duration(time),
                )));
            }
            watch.before = came;
            watch.next.as_mut().reset(Instant::now() + time);
        }
    }

    fn end(&mut self, status: Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.is_over = true;
        self.hold(None);
        Poll::Ready(Some(Err(status)))
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        if let Some(waits) = &mut this.waits {
            let taken = ready!(waits.room.as_mut().poll(cx));
            let data = std::mem::take(&mut waits.data);
            this.waits = None;
            this.hold(Some(taken));
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(other) => return Poll::Ready(other),
            Poll::Pending => {
                let status = ready!(this.poll_late(cx));
                return this.end(status);
            }
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        match this.take(data) {
            Some(Ok(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Err(status)) => this.end(status),
            // Asked for the first time here: so it knows whom to wake.
            None => Pin::new(this).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || (self.waits.is_none() && self.body.is_end_stream())
    }
}

/// Where the bytes of a body stand among its messages: five bytes in front of each, the last four its length.
#[derive(Debug, Default)]
struct Messages {
    head: [u8; 5],
    /// How much of a head has come.
    known: usize,
    /// How much of a message has to come.
    left: usize,
    /// Messages that have begun.
    begun: u32,
}

impl Messages {
    /// Moves on. Returns the length of the message that began last, if one did.
    fn read(&mut self, mut data: &[u8]) -> Option<usize> {
        let mut began = None;
        while !data.is_empty() {
            let wanted = if self.left > 0 { self.left } else { self.head.len() - self.known };
            let (now, rest) = data.split_at(wanted.min(data.len()));
            data = rest;
            if self.left > 0 {
                self.left -= now.len();
                continue;
            }
            self.head[self.known..self.known + now.len()].copy_from_slice(now);
            self.known += now.len();
            if self.known == self.head.len() {
                let [_, length @ ..] = self.head;
                self.left = u32::from_be_bytes(length) as usize;
                self.known = 0;
                self.begun += 1;
                began = Some(self.left);
            }
        }
        began
    }

    /// Whether all that began has come.
    fn is_between(&self) -> bool {
        self.left == 0 && self.known == 0
    }
}
