//! The calling side of a link: connect, greet, match answers to calls, back off, connect again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use durahub_proto::peer::peer_client::PeerClient;
use durahub_proto::peer::{Frame, Hello};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Code, Status, Streaming};

use super::gather::Gather;
use super::inbox::{Inbox, Message};
use super::outbox::{Begin, Frames, Outbox};
use super::{CONNECT_TIME, Shared, causes, connect};
use crate::peers::{Call, Method, Peer, PeerError};
use crate::program::Feed;

/// Pause after the first failure to connect; doubled with every further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two attempts: a peer that comes back is noticed within it.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A link to one peer.
pub(super) struct Link {
    peer: u64,
    shared: Arc<Shared>,
    phase: watch::Sender<Phase>,
    /// Reason that was logged last, to say it once.
    told: Mutex<String>,
}

#[derive(Clone)]
enum Phase {
    Idle,
    Connecting,
    Up(Arc<Session>),
    Down { until: Instant, failures: u32, reason: String },
}

/// One connection, from its greeting to its end.
struct Session {
    outbox: Outbox,
    next_call: AtomicU64,
    /// `None` once the session has ended.
    waiting: Mutex<Option<HashMap<u64, Waiting>>>,
}

/// Who waits for what the peer says in a call.
enum Waiting {
    Answer(oneshot::Sender<Result<Bytes, PeerError>>),
    Items(mpsc::UnboundedSender<Bytes>),
}

impl Link {
    pub(super) fn new(peer: u64, shared: Arc<Shared>) -> Self {
        Self { peer, shared, phase: watch::channel(Phase::Idle).0, told: Mutex::default() }
    }

    /// Sends a call and waits for its answer, at most `timeout`.
    pub(super) async fn call(
        self: &Arc<Self>,
        to: &Peer,
        call: Call,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let up = tokio::time::timeout_at(deadline, self.session(to));
        let session =
            up.await.unwrap_or_else(|_| Err(self.unreachable("no connection in time")))?;
        let late = || Err(PeerError::Timeout { peer: self.peer, timeout });
        tokio::time::timeout_at(deadline, session.call(self.peer, call, timeout))
            .await
            .unwrap_or_else(|_| late())
    }

    /// Opens a feed.
    pub(super) async fn feed(self: &Arc<Self>, to: &Peer) -> Result<Feed, PeerError> {
        let session = self.session(to).await?;
        session.feed(self.peer).await
    }

    fn unreachable(&self, reason: &str) -> PeerError {
        PeerError::Unreachable { peer: self.peer, reason: reason.into() }
    }

    /// The session, connected first if there is none. In a pause after a failure the answer is that failure.
    async fn session(self: &Arc<Self>, to: &Peer) -> Result<Arc<Session>, PeerError> {
        let mut phase = self.phase.subscribe();
        loop {
            let mut failures = None;
            self.phase.send_if_modified(|phase| {
                let tried = match phase {
                    Phase::Idle => 0,
                    Phase::Down { until, failures, .. } if *until <= Instant::now() => *failures,
                    _ => return false,
                };
                failures = Some(tried);
                *phase = Phase::Connecting;
                true
            });
            if let Some(failures) = failures {
                tokio::spawn(Arc::clone(self).connect(to.clone(), failures));
            }
            match &*phase.borrow_and_update() {
                Phase::Up(session) => return Ok(Arc::clone(session)),
                Phase::Down { until, reason, .. } if *until > Instant::now() => {
                    return Err(self.unreachable(reason));
                }
                // Its pause has just ended, and nobody connects yet.
                Phase::Down { .. } => continue,
                Phase::Idle | Phase::Connecting => {}
            }
            if phase.changed().await.is_err() {
                return Err(self.unreachable("the transport is gone"));
            }
        }
    }

    async fn connect(self: Arc<Self>, to: Peer, failures: u32) {
        let address = self.shared.book.find(&to);
        match self.greet(&address).await {
            Ok((session, answers, inbox)) => {
                tracing::info!(peer = self.peer, %address, "linked");
                self.told.lock().clear();
                self.phase.send_replace(Phase::Up(Arc::clone(&session)));
                let reason = receive(&session, answers, inbox).await;
                tracing::info!(peer = self.peer, %reason, "link lost");
                let until = Instant::now() + FIRST_PAUSE;
                self.phase.send_replace(Phase::Down { until, failures: 0, reason: reason.clone() });
                // Only now: who hears of the loss must not find the old session again.
                session.end(self.peer, &reason);
            }
            Err(error) => {
                let reason = error.to_string();
                if std::mem::replace(&mut *self.told.lock(), reason.clone()) != reason {
                    tracing::warn!(peer = self.peer, %address, %reason, "no link");
                }
                let pause = (FIRST_PAUSE * 2_u32.pow(failures.min(6))).min(LONGEST_PAUSE);
                let until = Instant::now() + pause;
                self.phase.send_replace(Phase::Down { until, failures: failures + 1, reason });
            }
        }
    }

    /// Opens the stream and exchanges greetings.
    async fn greet(
        &self,
        address: &str,
    ) -> Result<(Arc<Session>, Streaming<Frame>, Inbox), PeerError> {
        let Some((mine, judge)) = self.shared.hello.get() else {
            return Err(self.unreachable("this node has no identity yet"));
        };
        let channel = connect(&self.shared.secure, self.peer, address).await?;
        let outbox = Outbox::new(Hello { to: self.peer, ..mine.clone() });
        let greeting = async {
            let mut answers = PeerClient::new(channel)
                .link(Gather::new(Frames(outbox.clone())))
                .await?
                .into_inner();
            let mut inbox = Inbox::default();
            let first = answers.message().await?.map(|frame| inbox.accept(frame));
            match first {
                Some(Ok(Some(Message::Hello(theirs)))) => Ok((answers, inbox, theirs)),
                _ => Err(Status::unavailable("it does not greet")),
            }
        };
        let (answers, inbox, theirs) = match tokio::time::timeout(CONNECT_TIME, greeting).await {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(status)) => {
                if status.code() == Code::PermissionDenied {
                    (self.shared.expelled)(status.message());
                }
                return Err(self.unreachable(status.message()));
            }
            Err(_) => return Err(self.unreachable("it does not greet in time")),
        };
        if theirs.cluster != mine.cluster || theirs.node != self.peer {
            let found = format!("at {address} answers node {} of another cluster", theirs.node);
            return Err(self.unreachable(&found));
        }
        judge(&theirs).map_err(|reason| self.unreachable(&reason))?;
        let session = Session {
            outbox,
            next_call: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
        };
        Ok((Arc::new(session), answers, inbox))
    }
}

/// Hands out answers until the stream ends; returns why it did.
async fn receive(session: &Session, mut answers: Streaming<Frame>, mut inbox: Inbox) -> String {
    loop {
        let frame = match answers.message().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return "the peer has closed the link".into(),
            Err(status) => return status.message().to_owned(),
        };
        match inbox.accept(frame) {
            Ok(Some(Message::Response { call, result })) => session.answer(call, result),
            Ok(Some(Message::Item { call, payload })) => session.item(call, payload),
            Ok(_) => {}
            Err(reason) => return reason,
        }
    }
}

impl Session {
    async fn call(&self, peer: u64, call: Call, timeout: Duration) -> Result<Bytes, PeerError> {
        let lost = |reason: &str| PeerError::Lost { peer, reason: reason.into() };
        let (sender, answer) = oneshot::channel();
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(id, Waiting::Answer(sender)),
            None => {
                let reason = "the link was just lost".into();
                return Err(PeerError::Unreachable { peer, reason });
            }
        };
        let mut unanswered = Unanswered { session: self, call: id, sent: false };
        let begin = Begin::Request {
            method: call.method,
            group: call.group.0,
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        };
        self.outbox.send(id, begin, call.payload).await;
        unanswered.sent = true;
        let answer = answer.await.unwrap_or_else(|_| Err(lost("the link was lost")));
        std::mem::forget(unanswered);
        match answer {
            Err(PeerError::Failed { reason, .. }) => Err(PeerError::Failed { peer, reason }),
            other => other,
        }
    }

    async fn feed(self: Arc<Self>, peer: u64) -> Result<Feed, PeerError> {
        let (mine, theirs) = Feed::pair();
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(id, Waiting::Items(theirs.sender)),
            None => {
                let reason = "the link was just lost".into();
                return Err(PeerError::Unreachable { peer, reason });
            }
        };
        let begin = Begin::Request { method: Method::Feed, group: 0, timeout_ms: 0 };
        self.outbox.send(id, begin, Bytes::new()).await;
        let mut to_send = theirs.receiver;
        tokio::spawn(async move {
            while let Some(item) = to_send.recv().await {
                self.outbox.send_item(id, item).await;
            }
            let open = self.waiting.lock().as_mut().and_then(|waiting| waiting.remove(&id));
            if open.is_some() {
                self.outbox.cancel(id);
            }
        });
        Ok(mine)
    }

    fn answer(&self, call: u64, result: Result<Bytes, String>) {
        let waiting = self.waiting.lock().as_mut().and_then(|waiting| waiting.remove(&call));
        match waiting {
            Some(Waiting::Answer(waiting)) => {
                // The peer's id is filled in by the caller.
                let result = result.map_err(|reason| PeerError::Failed { peer: 0, reason });
                let _ = waiting.send(result);
            }
            Some(Waiting::Items(_)) => {
                if let Err(reason) = result {
                    tracing::debug!(%reason, "a feed was refused");
                }
            }
            None => {}
        }
    }

    fn item(&self, call: u64, item: Bytes) {
        let waiting = self.waiting.lock();
        if let Some(Waiting::Items(items)) = waiting.as_ref().and_then(|all| all.get(&call)) {
            // Whoever no longer reads has let go of the feed.
            let _ = items.send(item);
        }
    }

    /// Nothing more will be answered.
    fn end(&self, peer: u64, reason: &str) {
        self.outbox.close();
        for (_, waiting) in self.waiting.lock().take().into_iter().flatten() {
            // Feeds end when their senders are dropped.
            if let Waiting::Answer(waiting) = waiting {
                let _ = waiting.send(Err(PeerError::Lost { peer, reason: reason.into() }));
            }
        }
    }
}

/// A call whose caller may go away: then the peer need not finish it.
struct Unanswered<'a> {
    session: &'a Session,
    call: u64,
    sent: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.session.waiting.lock().as_mut() {
            waiting.remove(&self.call);
        }
        if self.sent {
            self.session.outbox.cancel(self.call);
        }
    }
}

/// What a status of a peer means.
pub(super) fn refusal(peer: u64, status: &Status) -> PeerError {
    let cause = std::error::Error::source(status).map(|cause| format!(": {}", causes(cause)));
    let reason = status.message().to_owned() + &cause.unwrap_or_default();
    match status.code() {
        Code::FailedPrecondition | Code::PermissionDenied | Code::InvalidArgument => {
            PeerError::Failed { peer, reason }
        }
        Code::Unavailable => PeerError::Unreachable { peer, reason },
        _ => PeerError::Lost { peer, reason },
    }
}
