//! Calls as an SDK makes them, to whichever server a load balancer picks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use durahub_proto::wire::task_hub_sidecar_service_client::TaskHubSidecarServiceClient;
use parking_lot::RwLock;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

pub(crate) type Client = TaskHubSidecarServiceClient<Channel>;

/// What .NET and JS do (R1.32): attempts, first and longest pause.
const ATTEMPTS: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// The servers, by number. A call goes to the next one in turn, and so does each attempt to repeat it.
#[derive(Default)]
pub(crate) struct Gateways {
    servers: RwLock<Vec<(u64, Channel)>>,
    turn: AtomicUsize,
}

/// A channel that connects when it is used, and again when the connection is lost.
pub(crate) fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect_timeout(Duration::from_secs(2)).tcp_nodelay(true).connect_lazy()
}

impl Gateways {
    /// Adds a server, or replaces its channel.
    pub(crate) fn add(&self, id: u64, channel: Channel) {
        let mut servers = self.servers.write();
        servers.retain(|(known, _)| *known != id);
        servers.push((id, channel));
    }

    /// Takes a server out, as a load balancer does with one that is not ready.
    pub(crate) fn remove(&self, id: u64) {
        self.servers.write().retain(|(known, _)| *known != id);
    }

    /// The next server and a client of it.
    pub(crate) fn next(&self) -> (u64, Client) {
        let servers = self.servers.read();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % servers.len();
        (servers[turn].0, Client::new(servers[turn].1.clone()))
    }

    /// Always the same server for the same place, as long as none is added or removed.
    pub(crate) fn at(&self, place: usize) -> (u64, Client) {
        let servers = self.servers.read();
        let (id, channel) = &servers[place % servers.len()];
        (*id, Client::new(channel.clone()))
    }

    /// A client of each server.
    pub(crate) fn all(&self) -> Vec<(u64, Client)> {
        let servers = self.servers.read();
        servers.iter().map(|(id, channel)| (*id, Client::new(channel.clone()))).collect()
    }

    /// Makes a call, and repeats it where an SDK would: on `UNAVAILABLE`, some times, with a pause.
    pub(crate) async fn call<T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        mut send: impl FnMut(Client) -> F,
    ) -> Result<T, Status> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match send(self.next().1).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if status.code() == Code::Unavailable && attempt < ATTEMPTS => {}
                Err(status) if never_sent(&status) => {}
                Err(status) => return Err(status),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("the last attempt returns")
    }
}

/// Whether the server surely did nothing: the call never left this side, or the server was leaving and said that it
/// had not looked at it. gRPC's own clients send such a call again without a word.
fn never_sent(status: &Status) -> bool {
    let causes = std::iter::successors(std::error::Error::source(status), |cause| cause.source());
    let mut causes = causes.peekable();
    let closed =
        causes.peek().is_some_and(|cause| format!("{cause:?}").contains("connection closed"));
    // Streams up to the last one that the server names go on; this one came behind it.
    let leaves =
        |cause: &h2::Error| cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR);
    (status.code() == Code::Cancelled && closed)
        || causes.any(|cause| cause.downcast_ref().is_some_and(leaves))
}

/// A request with a deadline: a call that hangs is a call that failed.
pub(crate) fn within<T>(seconds: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(seconds));
    request
}

/// Whether this is how a call ends when its server dies.
pub(crate) fn is_broken(status: &Status) -> bool {
    use Code::{Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
    matches!(status.code(), Unavailable | Unknown | Cancelled | DeadlineExceeded | Internal)
}
