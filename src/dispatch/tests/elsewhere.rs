//! Two nodes of one cluster, and what a node does that takes itself for the leader and is not.
//!
//! A node hears of a lead that has moved a moment later than workers do: they may have been handed an item by the next
//! leader, and answer it through the gateway of the one before. An answer that the leader does not hear of leaves its
//! item with a worker that is done with it, and nobody gets it again.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use durahub_cluster::admin::Open;
use durahub_cluster::transport::{GrpcTransport, PeerServer, Places, Plain};
use durahub_cluster::{Error, GroupId, Leadership, NodeConfig};
use durahub_proto::peer::ask::About;
use durahub_proto::peer::{HandedOut, TakeOver};
use durahub_proto::wire;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::caller::{dispatcher_with, next, start};
use crate::dispatch::hub::Kind;
use crate::dispatch::{Abandoned, CompleteError, Dispatcher, StreamOptions, WorkStream};
use crate::engine::{Address, read};
use crate::machine::{Node, RowsView};

/// One of two nodes.
struct Member {
    number: u64,
    node: Node,
    dispatcher: Dispatcher,
    server: PeerServer,
    leading: JoinSet<()>,
}

impl Member {
    async fn start(number: u64, listener: TcpListener, members: BTreeMap<u64, String>) -> Member {
        let transport = GrpcTransport::new(Arc::new(Plain), |_: &str| ());
        let change = |config: &mut NodeConfig| {
            config.options.peer_address = members[&number].clone();
            config.options.initial_members = members;
            config.options.transport = Arc::new(transport);
        };
        let (node, dispatcher, mut leading) = dispatcher_with(number, change).await;
        let server = PeerServer::start(
            listener,
            Arc::new(Plain),
            node.service(),
            node.admin(),
            Arc::new(Open),
            Places::default(),
        );
        dispatcher.join(node.peers(), &mut leading);
        node.serve(dispatcher.program());
        Member { number, node, dispatcher, server, leading }
    }

    async fn stop(self) {
        self.server.stop().await;
        self.node.stop().await;
    }
}

/// Two nodes: the one that leads, and the other one.
async fn two() -> (Member, Member) {
    let mut listeners = Vec::new();
    for number in 1..=2 {
        listeners.push((number, TcpListener::bind("127.0.0.1:0").await.expect("a port")));
    }
    let address = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
    let members: BTreeMap<u64, String> =
        listeners.iter().map(|(number, listener)| (*number, address(listener))).collect();
    let mut nodes = Vec::new();
    for (number, listener) in listeners {
        nodes.push(Member::start(number, listener, members.clone()).await);
    }
    until(|| nodes.iter().any(leads)).await;
    nodes.sort_by_key(|it| !leads(it));
    let other = nodes.pop().expect("two nodes");
    let leader = nodes.pop().expect("two nodes");
    // Each leads something, or the lead would be moved for balance.
    if leads_metadata(&leader) {
        let metadata = leader.node.group(GroupId::METADATA);
        metadata.transfer_leader(other.number).await.expect("it leads");
    }
    until(|| leads_metadata(&other) && leads(&leader)).await;
    (leader, other)
}

fn leads_metadata(member: &Member) -> bool {
    let leadership = member.node.group(GroupId::METADATA).leadership();
    matches!(*leadership.borrow(), Leadership::Leader { .. })
}

fn leads(member: &Member) -> bool {
    member.dispatcher.has_rebuilt(&member.dispatcher.partitions()[0])
}

async fn until(what: impl Fn() -> bool) {
    let happens = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), happens).await.expect("it happens");
}

fn worker(at: &Dispatcher) -> WorkStream {
    at.open_stream(StreamOptions { hub: 1, ..Default::default() }, futures::future::pending())
}

fn response(token: &str) -> wire::OrchestratorResponse {
    wire::OrchestratorResponse {
        instance_id: "a".into(),
        completion_token: token.into(),
        ..Default::default()
    }
}

fn with_leader(dispatcher: &Dispatcher) -> (usize, usize) {
    dispatcher.load()[0].turns
}

fn is_refused(done: Result<(), CompleteError>) -> bool {
    matches!(done, Err(CompleteError::Cluster(Error::NotLeader { .. })))
}

/// L3: whatever a worker says of an item, its leader hears of it, though the gateway took itself for the leader.
#[tokio::test]
async fn a_node_that_does_not_lead_takes_in_no_answer_of_a_worker() {
    let (leader, other) = two().await;
    start(&leader.dispatcher).await;
    let mut stream = worker(&leader.dispatcher);
    let token = next(&mut stream).await.completion_token;
    let own = &other.dispatcher;
    // As if it had not heard yet that another node leads: the step behind the look at who does.
    assert!(is_refused(own.complete_turn_here(1, response(&token)).await));
    assert!(is_refused(own.complete_turn_here(1, response("")).await), "R3.44");
    #[expect(deprecated, reason = "R3.65")]
    let part = wire::OrchestratorResponse { is_partial: true, ..response(&token) };
    assert!(is_refused(own.complete_turn_here(1, part).await), "R3.66");
    let empty = wire::OrchestratorResponse { requires_history: true, ..response(&token) };
    assert!(is_refused(own.complete_turn_here(1, empty).await), "R3.32");
    assert!(is_refused(own.abandon_here(1, Kind::Turn, &token).await), "R3.61");
    assert_eq!(with_leader(&leader.dispatcher), (0, 1), "nothing was done past its tables");

    assert_eq!(own.past_of_turn(1, "a").await.expect("an answer"), Some(0));
    own.abandon(1, Abandoned::Turn, &token).await.expect("the leader takes it back");
    assert_eq!(with_leader(&leader.dispatcher), (1, 0));
    let token = next(&mut stream).await.completion_token;
    own.complete_turn(1, response(&token), ()).await.expect("it is committed at the leader");
    assert_eq!(with_leader(&leader.dispatcher), (0, 0));
    leader.stop().await;
    other.stop().await;
}

/// The same by a leader whose lead has just gone: its tables still know the lease.
#[tokio::test]
async fn a_leader_of_before_commits_nothing_through_the_next_one() {
    let (mut leader, other) = two().await;
    start(&leader.dispatcher).await;
    let mut stream = worker(&leader.dispatcher);
    let token = next(&mut stream).await.completion_token;
    // Its dispatcher hears of nothing any more.
    leader.leading.shutdown().await;
    let partition = &leader.dispatcher.partitions()[0];
    partition.transfer_leader(other.number).await.expect("it leads");
    until(|| leads(&other)).await;
    assert!(is_refused(leader.dispatcher.complete_turn_here(1, response(&token)).await));
    let events = |at: &Member| {
        let partition = &at.dispatcher.partitions()[0];
        let head = partition.peek(|rows| read::head(&RowsView(rows), &Address::new(1, "a")));
        head.expect("is there").history_events
    };
    assert_eq!(events(&other), 0, "nothing was committed");
    other.dispatcher.complete_turn(1, response(&token), ()).await.expect("R3.48");
    assert!(events(&other) > 0, "it is now");
    leader.stop().await;
    other.stop().await;
}

/// The next leader was told of the lease: it is not given back there, which would hold the instance up for a second.
#[tokio::test]
async fn a_leader_of_before_leaves_the_lease_to_the_next_one() {
    let (mut leader, other) = two().await;
    start(&leader.dispatcher).await;
    let mut stream = worker(&leader.dispatcher);
    let token = next(&mut stream).await.completion_token;
    let partition = leader.dispatcher.partitions()[0].clone();
    let Leadership::Leader { term } = *partition.leadership().borrow() else { panic!("leads") };
    let leases = leader.dispatcher.hold_back(&partition, term).await;
    assert_eq!(leases.len(), 1);
    other.dispatcher.hear_of_leases(TakeOver { partition: 1, term, leases });
    leader.leading.shutdown().await;
    partition.transfer_leader(other.number).await.expect("it leads");
    until(|| leads(&other)).await;
    assert_eq!(with_leader(&other.dispatcher), (0, 1));
    for token in [token.as_str(), ""] {
        let done = leader.dispatcher.complete_turn_here(1, response(token)).await;
        assert!(is_refused(done), "{token:?}");
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(with_leader(&other.dispatcher), (0, 1), "it is still with its worker");
    leader.dispatcher.complete_turn(1, response(&token), ()).await.expect("commits");
    assert_eq!(with_leader(&other.dispatcher), (0, 0));
    leader.stop().await;
    other.stop().await;
}

/// What turns out not to be led here is asked of whoever is named, and here again if that one knows better.
#[tokio::test]
async fn a_question_goes_on_where_the_leader_is_named() {
    let (leader, other) = two().await;
    let (tries, asked) = (Cell::new(0), Cell::new(0));
    let about = |question: &String| {
        assert_eq!(question, "kept");
        asked.set(asked.get() + 1);
        About::HandedOut(HandedOut { kind: Kind::Turn as u32, instance: "a".into() })
    };
    let here = |question: String| {
        assert_eq!(question, "kept");
        tries.set(tries.get() + 1);
        let first = tries.get() == 1;
        let named = other.number;
        async move {
            match first {
                true => Err(Error::NotLeader { leader: Some(named) }.into()),
                false => Ok(()),
            }
        }
    };
    let answer = leader.dispatcher.ask(1, "a", "kept".to_owned(), about, here).await;
    assert!(answer.expect("an answer").is_none(), "it was done here");
    assert_eq!((tries.get(), asked.get()), (2, 1));
    leader.stop().await;
    other.stop().await;
}
