//! The rules by which a replica comes and goes, on one node: what is refused, and what is left.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use durahub_proto::peer::change_replicas::Change;
use durahub_proto::peer::{ChangeReplicas, Member, Replica as Named};

use super::*;
use crate::admission::everything;
use crate::batcher::BatchLimits;
use crate::directory::Leadership;
use crate::machine::{Applied, Changes, GroupId, Rows, Stamp};
use crate::peers::{Call, Method, NoPeers};
use crate::replica::Ground;
use crate::replicas::request_to_drop;
use crate::store::flusher::Flusher;
use crate::store::memory::MemoryEngine;
use crate::store::sled::SledEngine;
use crate::store::{Engine, FaultHook, Space};

const P1: GroupId = GroupId(1);

/// Writes a row per command.
struct Echo;

impl Machine for Echo {
    type Effect = ();

    fn apply(&self, _: &dyn Rows, stamp: Stamp, command: &Bytes) -> Applied<()> {
        let key = stamp.sequence.to_be_bytes().to_vec();
        let changes = Changes::from([(key, Some(command.clone()))]);
        Applied { changes, reply: command.clone(), effects: Vec::new() }
    }

    fn read(&self, rows: &dyn Rows, _: &Bytes) -> Option<Bytes> {
        let mut count = 0_u32;
        rows.scan(&[], &[0xff], &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        });
        Some(Bytes::copy_from_slice(&count.to_be_bytes()))
    }

    fn committed(&self, _: GroupId, _: Vec<()>) {}
}

fn ground(engine: Arc<dyn Engine>) -> Arc<Ground<Echo>> {
    let fault = FaultHook::new(|message| panic!("{message}"));
    let flusher = Arc::new(Flusher::start(Arc::clone(&engine), fault.clone()).unwrap());
    Arc::new(Ground {
        node: 1,
        cluster: [7; 16],
        address: "node-1:1".into(),
        initial_members: BTreeMap::new(),
        joined: false,
        machine: Arc::new(Echo),
        engine,
        flusher,
        snapshots: None,
        transport: Arc::new(NoPeers),
        tail_limit: 1 << 20,
        snapshot_every: 1_000,
        keep_entries: 10,
        fault,
        limits: BatchLimits {
            command_bytes: 1 << 20,
            entry_bytes: 1 << 20,
            entry_commands: 100,
            in_flight: 1,
            waiting: 100,
            timeout: Duration::from_secs(5),
        },
        stamp: Arc::new(|| (1, 2)),
    })
}

async fn open(ground: &Arc<Ground<Echo>>) -> Partition<Echo> {
    Partition::open(P1, Arc::clone(ground), None, everything()).await.unwrap()
}

/// The only member of its group, with some rows.
async fn member(ground: &Arc<Ground<Echo>>) -> Partition<Echo> {
    let partition = open(ground).await;
    let mut leadership = partition.leadership();
    leadership.wait_for(|now| matches!(now, Leadership::Leader { .. })).await.unwrap();
    for n in 0..100 {
        partition.propose(Bytes::from(vec![n; 100])).await.unwrap();
    }
    assert_eq!(partition.query(Bytes::new()).await.unwrap(), 100_u32.to_be_bytes()[..]);
    partition
}

fn stored(engine: &dyn Engine) -> Vec<u8> {
    let mut kinds = Vec::new();
    for (space, from) in [(Space::Log, 0), (Space::State(1), 0)] {
        engine
            .scan(space, &[from], &[0xff], &mut |key, _| {
                kinds.push(key[0]);
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    kinds
}

async fn becomes(partition: &Partition<Echo>, stage: Stage) {
    for _ in 0..1_000 {
        if partition.inner.holding.lock().await.stage() == stage {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not become {stage:?}");
}

async fn call(partition: &Partition<Echo>, method: Method) -> String {
    let call = Call { group: P1, method, payload: Bytes::new() };
    partition.group().unwrap().answer(&call).await.unwrap_err().to_string()
}

async fn comes_and_goes(engine: Arc<dyn Engine>) {
    let ground = ground(Arc::clone(&engine));
    let partition = member(&ground).await;
    let own = partition.progress().membership_index;
    let drop_it = |begun, membership_index| {
        let partition = partition.clone();
        async move { partition.give_up(DropReplica { begun, membership_index, leader_term: 0 }).await }
    };
    // As a member, as far as this node knows; by a request of before; about another replica.
    drop_it(0, own).await.unwrap_err();
    drop_it(1, own + 1).await.unwrap_err();
    assert!(partition.is_here() && partition.propose(Bytes::from_static(b"x")).await.is_ok());
    let vote = engine.get(Space::Log, &keys::pointer(keys::VOTE, 1)).unwrap().unwrap();

    // A proposal that is under way and a read end as they do where another node leads.
    let busy = partition.clone();
    let calls = tokio::spawn(async move {
        loop {
            match busy.propose(Bytes::from_static(b"y")).await {
                Ok(_) => {}
                Err(error @ (Error::NotLeader { .. } | Error::Unavailable(_))) => return error,
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop_it(0, own + 1).await.unwrap();
    drop_it(0, own + 1).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), calls).await.unwrap().unwrap();
    assert!(!partition.is_here() && partition.group().is_err());
    assert_eq!(partition.look(|_| ()), None);
    assert!(matches!(partition.query(Bytes::new()).await, Err(Error::NotLeader { .. })));
    assert!(!partition.catch_up().await.unwrap());
    let refused = partition.propose(Bytes::from_static(b"z")).await;
    assert!(matches!(refused, Err(Error::NotLeader { .. })), "{refused:?}");
    becomes(&partition, Stage::Gone).await;
    assert_eq!(stored(engine.as_ref()), b"HV", "nothing but the vote, and what is written of it");
    assert_eq!(engine.get(Space::Log, &keys::pointer(keys::VOTE, 1)).unwrap().unwrap(), vote);

    // A replica that is begun promises nothing to anybody until it has grown, and does not stand itself.
    partition.begin(BeginReplica { committed_index: 50 }).await.unwrap();
    assert!(partition.group().is_ok() && !partition.is_here());
    for method in [Method::Vote, Method::PreVote, Method::TransferLeader] {
        let told = call(&partition, method).await;
        assert!(told.contains("has not grown"), "{told}");
    }
    assert!(call(&partition, Method::Append).await.contains("peer call"), "it takes entries");
    assert_eq!(engine.get(Space::Log, &keys::pointer(keys::VOTE, 1)).unwrap().unwrap(), vote);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(partition.progress().voters, [0; 0]);
    assert!(matches!(*partition.leadership().borrow(), Leadership::Follower { .. }));
    // What comes late concerns no other replica than it names.
    drop_it(0, u64::MAX).await.unwrap_err();
    partition.begin(BeginReplica { committed_index: 40 }).await.unwrap();
    drop_it(1, u64::MAX).await.unwrap_err();
    assert_eq!(*partition.inner.holding.lock().await, Holding::new(Stage::Growing, 2, 50));

    // After a restart it is where it was.
    partition.stop().await;
    let again = open(&ground).await;
    assert!(call(&again, Method::Vote).await.contains("has not grown") && !again.is_here());
    again.give_up(DropReplica { begun: 2, membership_index: 9, leader_term: 3 }).await.unwrap();
    becomes(&again, Stage::Gone).await;
    again.stop().await;
    let again = open(&ground).await;
    assert!(again.group().is_err());
    assert_eq!(*again.inner.holding.lock().await, Holding::new(Stage::Gone, 2, 0));
    assert_eq!(stored(engine.as_ref()), b"HV");
    again.stop().await;
    ground.flusher.close();
    engine.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_in_memory_comes_and_goes() {
    comes_and_goes(Arc::<MemoryEngine>::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_on_disk_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    comes_and_goes(Arc::new(SledEngine::open(dir.path(), 2, 8 << 20).unwrap())).await;
}

/// What a deposed leader wrote of the members, and was never committed, is at a higher index than what was committed
/// later: it holds up no removal. What is later does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_of_a_deposed_leader_keeps_no_replica() {
    let ground = ground(Arc::<MemoryEngine>::default());
    let partition = member(&ground).await;
    let group = partition.group().unwrap();
    let learner = Change::AddLearner(Member { node: 2, address: "node-2:1".into() });
    let request = ChangeReplicas { planned_from: 0, change: Some(learner) };
    group.change_replicas(request).await.unwrap();
    let known = async {
        while partition.progress().learners.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), known).await.unwrap();
    let own = partition.progress();
    let (term, index) = (own.membership_term, own.membership_index);
    assert!(term > 0 && index > 100, "{own:?}");
    request_to_drop(&group, Named { node: 2, begun: 7 }).await.unwrap_err();
    let request = request_to_drop(&group, Named { node: 3, begun: 7 }).await.unwrap();
    assert_eq!(request, DropReplica { begun: 7, membership_index: index, leader_term: term });
    let drop_it = |leader_term, membership_index| {
        let request = DropReplica { begun: 0, membership_index, leader_term };
        let partition = partition.clone();
        async move { partition.give_up(request).await }
    };
    drop_it(term, index - 1).await.unwrap_err();
    drop_it(term, index).await.unwrap_err();
    drop_it(0, index - 1).await.unwrap_err();
    assert!(partition.is_here());
    drop_it(term + 1, index - 1).await.unwrap();
    becomes(&partition, Stage::Gone).await;
    partition.stop().await;
}

/// Whoever asked for it, and whether it still waits: the group ends, and everybody here hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantine_that_nobody_waits_for_is_carried_through() {
    let engine: Arc<dyn Engine> = Arc::<MemoryEngine>::default();
    let ground = ground(Arc::clone(&engine));
    let partition = member(&ground).await;
    let gone = partition.gone();
    tokio::pin!(gone);
    assert!(futures::poll!(gone.as_mut()).is_pending());
    {
        let asked = partition.quarantine("it differs".into());
        tokio::pin!(asked);
        let _ = futures::poll!(asked.as_mut());
    }
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    let leads = partition.group().unwrap().confirm_leadership().await;
    assert_eq!(leads, Err(Error::Stopping));
    partition.quarantine("it differs still".into()).await.unwrap();
    partition.stop().await;
    let again = Partition::open(P1, Arc::clone(&ground), None, everything()).await;
    let refused = again.err().unwrap().to_string();
    assert!(refused.contains("it differs: remove this node"), "{refused}");
}

/// The end of the process amid a removal: the next start goes on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_being_given_up_goes_after_a_restart() {
    let engine: Arc<dyn Engine> = Arc::<MemoryEngine>::default();
    let ground = ground(Arc::clone(&engine));
    let partition = member(&ground).await;
    partition.stop().await;
    let going = Holding::new(Stage::Going, 0, 0);
    partition.write(going).await.unwrap();
    assert!(stored(engine.as_ref()).len() > 100);
    let again = open(&ground).await;
    assert!(!again.is_here());
    becomes(&again, Stage::Gone).await;
    assert_eq!(stored(engine.as_ref()), b"HV");
    again.stop().await;
}
