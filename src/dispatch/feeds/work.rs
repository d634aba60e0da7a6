//! How much work a task hub has, over all partitions: what scales its workers.
//!
//! Each leader counts what it has in its tables. The figures are whole or not given at all: a partition whose
//! leader nobody knows, does not answer, or has not read its rows yet, counts as "ask again", never as no work,
//! since workers would be taken away for it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use durahub_cluster::{Error, Leadership};
use durahub_proto::peer::ask::About;
use durahub_proto::peer::ask_outcome::Outcome;
use durahub_proto::peer::{Ask, AskOutcome, NotLeader, Work, WorkOf};
use futures::future::try_join_all;
use prost::Message as _;
use tokio::time::Instant;

use crate::dispatch::Dispatcher;
use crate::dispatch::hub::Kind;

/// How long all leaders are looked for.
const SEARCH_TIME: Duration = Duration::from_secs(5);
/// Pause before looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Time for one question.
const ASK_TIME: Duration = Duration::from_secs(2);

/// How much work a task hub has: items that wait for a worker and items that are with one, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubWork {
    /// Orchestrator turns.
    pub turns: u64,
    /// Activities.
    pub activities: u64,
    /// Entities with operations.
    pub entities: u64,
}

impl From<HubWork> for Work {
    fn from(HubWork { turns, activities, entities }: HubWork) -> Work {
        Work { turns, activities, entities }
    }
}

impl Dispatcher {
    /// How much work a task hub has in the whole cluster.
    ///
    /// # Errors
    /// The last reason why the figures are not whole, when they were not for some seconds.
    pub async fn work_of(&self, hub: u32) -> Result<HubWork, Error> {
        let until = Instant::now() + SEARCH_TIME;
        loop {
            match self.ask_leaders(hub).await {
                Err(_) if Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
                told => return told,
            }
        }
    }

    async fn ask_leaders(&self, hub: u32) -> Result<HubWork, Error> {
        let peers = self.0.peers.get();
        let (mut here, mut there) = (Vec::new(), BTreeMap::<u64, Vec<u32>>::new());
        for partition in self.partitions() {
            match (*partition.leadership().borrow(), peers) {
                (Leadership::Leader { .. }, _) => here.push(partition.id().0),
                (Leadership::Follower { leader: Some(node) }, Some(peers))
                    if node != peers.node() =>
                {
                    there.entry(node).or_default().push(partition.id().0);
                }
                (Leadership::Follower { leader }, _) => return Err(Error::NotLeader { leader }),
            }
        }
        let mut work = match here.is_empty() {
            true => HubWork::default(),
            false => self.work_led_here(hub, &here)?,
        };
        let asked = there.into_iter().map(|(node, partitions)| {
            let about = Some(About::WorkOf(WorkOf { partitions }));
            let question = Bytes::from(Ask { hub, about }.encode_to_vec());
            async move {
                let Some(peers) = peers else { return Err(Error::NotLeader { leader: None }) };
                let unavailable = |text: String| Error::Unavailable(format!("node {node}: {text}"));
                let answer = peers.ask(node, question, ASK_TIME).await;
                let answer = answer.map_err(|error| unavailable(error.to_string()))?;
                let outcome = AskOutcome::decode(answer).map(|it| it.outcome);
                match outcome.map_err(|error| unavailable(error.to_string()))? {
                    Some(Outcome::Work(work)) => Ok(work),
                    Some(Outcome::NotLeader(NotLeader { leader })) => {
                        Err(Error::NotLeader { leader })
                    }
                    _ => Err(unavailable("it did not say how much work it has".to_owned())),
                }
            }
        });
        for told in try_join_all(asked).await? {
            work.turns += told.turns;
            work.activities += told.activities;
            work.entities += told.entities;
        }
        Ok(work)
    }

    /// How much work a task hub has in the partitions that this node leads; these must be among them.
    pub(super) fn work_led_here(&self, hub: u32, partitions: &[u32]) -> Result<HubWork, Error> {
        for number in partitions {
            let known = self.partitions().iter().find(|partition| partition.id().0 == *number);
            let Some(partition) = known else { return Err(Error::NotLeader { leader: None }) };
            match *partition.leadership().borrow() {
                Leadership::Leader { .. } if self.has_rebuilt(partition) => {}
                Leadership::Leader { .. } => return Err(Error::NotLeader { leader: None }),
                Leadership::Follower { leader } => return Err(Error::NotLeader { leader }),
            }
        }
        let hubs = self.0.hubs.lock();
        let Some(tables) = hubs.get(&hub) else { return Ok(HubWork::default()) };
        let count = |kind| {
            let (waiting, leased) = tables.counts(kind);
            (waiting + leased) as u64
        };
        Ok(HubWork {
            turns: count(Kind::Turn),
            activities: count(Kind::Activity),
            entities: count(Kind::Entity),
        })
    }
}
