//! Any node takes proposals and reads; a command is applied once, whatever happens to leaders.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::net::Net;
use crate::support::{Counters, number, propose};
use bytes::Bytes;
use durahub_cluster::{Demand, Error, GroupId, NodeConfig, Partition, Refusal};

const P1: GroupId = GroupId(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_node_takes_proposals_and_reads_what_was_acknowledged_elsewhere() {
    let net = Net::start(false, |_| {}).await;
    for round in 0..60 {
        let (writer, reader) = (round % 3 + 1, (round / 3) % 3 + 1);
        assert_eq!(propose(net.group(writer, P1), "add n 1").await, (round + 1).to_string());
        assert_eq!(number(net.group(reader, P1), "n").await, round + 1);
    }
    let long = vec![b'x'; 9 << 20];
    let follower = (1..=3).find(|id| net.group(*id, P1).progress().leader != Some(*id)).unwrap();
    let refused = net.group(follower, P1).propose(Bytes::from(long)).await;
    assert_eq!(refused, Err(Error::TooLarge { bytes: 9 << 20, limit: 8 << 20 }));
    net.stop().await;
}

/// A read that travels sees what was acknowledged, wherever it is asked, also while the lead moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_node_is_answered_by_the_leader() {
    let net = Net::start(false, |_| {}).await;
    for round in 1..=60 {
        let (writer, reader) = (round % 3 + 1, (round / 3) % 3 + 1);
        propose(net.group(writer, P1), "add n 1").await;
        if round % 20 == 0 {
            let leader = net.leader(P1, None).await;
            let _ = net.group(leader, P1).transfer_leader(leader % 3 + 1).await;
        }
        let answer = net.group(reader, P1).query(Bytes::from_static(b"n")).await.unwrap();
        assert_eq!(answer, round.to_string().as_bytes());
    }
    let unknown = net.group(1, P1).query(Bytes::new()).await;
    assert_eq!(unknown, Err(Error::NotLeader { leader: None }), "a read may be asked again");
    propose(net.group(1, P1), "put long 6000000").await;
    let long = net.group(2, P1).query(Bytes::from_static(b"long")).await.unwrap();
    assert_eq!(long.len(), 6_000_000);
    net.stop().await;
}

/// Counts up through one node until told to stop; returns how many calls were acknowledged.
async fn count(group: Partition<Counters>, stop: Arc<AtomicBool>, slowest: Arc<AtomicU64>) -> u64 {
    let mut done = 0;
    while !stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        group.propose(Bytes::from_static(b"add n 1")).await.unwrap();
        slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
        done += 1;
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_fails_and_none_counts_twice_while_leaders_come_and_go() {
    let net = Net::start(false, |_| {}).await;
    let (stop, slowest) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default());
    let counting: Vec<_> = (1..=3)
        .flat_map(|id| [id; 4])
        .map(|id| {
            let group = net.group(id, P1).clone();
            tokio::spawn(count(group, Arc::clone(&stop), Arc::clone(&slowest)))
        })
        .collect();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let leader = net.leader(P1, None).await;
        let next = leader % 3 + 1;
        let _ = net.group(leader, P1).transfer_leader(next).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        // Links break in the middle of calls: nobody knows what became of those.
        let leader = net.leader(P1, None).await;
        for other in (1..=3).filter(|other| *other != leader) {
            net.cut(other, leader, true);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        for other in (1..=3).filter(|other| *other != leader) {
            net.cut(other, leader, false);
        }
    }
    // And the leader is lost altogether, for longer than an election takes.
    let leader = net.leader(P1, None).await;
    net.isolate(leader, true);
    net.leader(P1, Some(leader)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    net.isolate(leader, false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = 0;
    for task in counting {
        acknowledged += task.await.unwrap();
    }
    assert!(acknowledged > 500, "{acknowledged} calls");
    assert_eq!(number(net.group(1, P1), "n").await, acknowledged);
    let slowest = slowest.load(Ordering::SeqCst);
    assert!(slowest < 10_000, "the slowest call took {slowest} ms");
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn minority_refuses_writes_and_reads() {
    let net = Net::start(false, |_| {}).await;
    propose(net.group(1, P1), "add n 1").await;
    for id in [2, 3] {
        net.isolate(id, true);
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    for id in 1..=3 {
        let begun = Instant::now();
        let write = net.group(id, P1).propose(Bytes::from_static(b"add n 1")).await;
        assert!(matches!(write, Err(Error::NotLeader { .. } | Error::Unavailable(_))), "{write:?}");
        let read = net.group(id, P1).read(|_| ()).await;
        assert!(matches!(read, Err(Error::NotLeader { .. } | Error::Unavailable(_))), "{read:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_waits_behind_an_entry_without_a_quorum_hears_that_nothing_was_done() {
    let net = Net::start(false, |_| {}).await;
    let leader = net.leader(P1, None).await;
    propose(net.group(leader, P1), "add n 1").await;
    for id in (1..=3).filter(|id| *id != leader) {
        net.isolate(id, true);
    }
    // While the lease holds the leader takes it in; nobody will ever know what becomes of it here.
    let group = net.group(leader, P1).clone();
    let stuck = tokio::spawn(async move { group.propose(Bytes::from_static(b"add n 1")).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..2 {
        let refused = net.group(leader, P1).propose(Bytes::from_static(b"add n 100")).await;
        assert!(matches!(refused, Err(Error::NotLeader { .. })), "{refused:?}");
    }
    for id in (1..=3).filter(|id| *id != leader) {
        net.isolate(id, false);
    }
    let _ = stuck.await.unwrap();
    assert!(number(net.group(leader, P1), "n").await <= 2, "a command that was refused was done");
    net.stop().await;
}

/// How short of room each node is: 1, it does without what begins; 2, without what grows as well.
static SHORT: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];

fn admit_while_there_is_room(config: &mut NodeConfig) {
    let node = config.node_id;
    config.options.admit = Arc::new(move |demand| {
        if demand as usize + SHORT[node as usize].load(Ordering::SeqCst) <= 2 {
            return Ok(());
        }
        Err(Refusal { reason: format!("node {node} is short"), retry: Duration::from_millis(70) })
    });
}

/// Proposes through a node; whether it was taken in, or which node refused it.
async fn ask(net: &Net, through: u64, demand: Demand) -> Result<(), String> {
    let command = Bytes::from_static(b"add n 1");
    match net.group(through, P1).propose_if_admitted(command, demand).await {
        Ok(_) => Ok(()),
        Err(Error::Refused(refusal)) => {
            assert_eq!(refusal.retry, Duration::from_millis(70));
            Err(refusal.reason)
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leaders_refuse_by_their_own_room_and_go_where_there_is_some() {
    let net = Net::start(false, admit_while_there_is_room).await;
    let set = |node: u64, short: usize| SHORT[node as usize].store(short, Ordering::SeqCst);
    let leader = net.leader(P1, None).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let mut taken = 0;

    // Followers without room keep nobody from anything.
    set(others[0], 1);
    for demand in [Demand::Begins, Demand::Grows, Demand::Must] {
        assert_eq!(ask(&net, others[0], demand).await, Ok(()));
        taken += 1;
    }
    // A leader that is short says so through every node.
    set(leader, 1);
    for through in 1..=3 {
        let told = Err(format!("node {leader} is short"));
        assert_eq!(ask(&net, through, Demand::Begins).await, told);
        assert_eq!(ask(&net, through, Demand::Grows).await, Ok(()));
        assert_eq!(ask(&net, through, Demand::Must).await, Ok(()));
        taken += 2;
    }
    // Where nobody has room the leaders stay, and take what they must.
    (1..=3).for_each(|id| set(id, 2));
    for through in 1..=3 {
        for demand in [Demand::Begins, Demand::Grows] {
            assert!(ask(&net, through, demand).await.is_err(), "{demand:?}");
        }
        assert_eq!(ask(&net, through, Demand::Must).await, Ok(()));
        taken += 1;
    }
    // Two get some back: the third hands over what it leads, and what it refused is taken there.
    let leader = net.leader(P1, None).await;
    (1..=3).filter(|id| *id != leader).for_each(|id| set(id, 0));
    let next = net.leader(P1, Some(leader)).await;
    assert_ne!(next, leader);
    assert_eq!(ask(&net, leader, Demand::Begins).await, Ok(()));
    taken += 1;
    let leads_none = || {
        let leaders = net.nodes[&leader].node.directory().leaders();
        leaders.iter().all(|(_, led_by)| led_by.is_some_and(|led_by| led_by != leader))
    };
    for _ in 0..600 {
        if leads_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(leads_none(), "a node without room still leads");
    assert_eq!(number(net.group(leader, P1), "n").await, taken, "what was refused was not done");
    // With room for all, the load is shared again.
    (1..=3).for_each(|id| set(id, 0));
    net.balanced().await;
    net.stop().await;
}
