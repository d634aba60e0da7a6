//! `PurgeInstances`: by id, by batch, by filter, with and without children (section 2.11).
//!
//! Only ended instances go. Each step is a small command to the partition that holds them, and a purge by
//! filter rests between its steps, so one of any size leaves room for other work. When the client goes away,
//! it stops behind the step under way.
//!
//! With children, the tree is walked down first and purged from its leaves: one that is cut short leaves the
//! root, and can be repeated. A tree with a running instance in it stays whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use durahub_cluster::GroupId;
use durahub_proto::wire;
use durahub_proto::wire::OrchestrationStatus::{Completed, Failed, Terminated};
use durahub_proto::wire::purge_instances_request::Request;
use tokio::time::Instant;
use tonic::Status;

use super::list::{closing, look, statuses};
use super::skip::check_batch;
use super::{Gateway, propose, status};
use crate::dispatch;
use crate::engine::command::{Purge, Target};
use crate::engine::read::{Known, List, OfList, Order, Seen};
use crate::engine::time::nanos;
use crate::engine::{Command, Mark, Reply, is_entity};
use crate::machine::Partition;

/// Instances that one command purges, or that one look examines.
const STEP: usize = 32;
/// Partitions that a purge by filter works on at the same time.
const LANES: usize = 2;
/// Longest pause between two steps.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Instances whose children one look reads.
const LOOK: usize = 8;
/// Purges by filter that run at the same time; others wait.
pub(super) const FILTERS_AT_ONCE: usize = 2;

/// What became of a tree.
enum Tree {
    /// The root is unknown, or has not ended.
    Nothing,
    /// So many instances are gone.
    Purged(usize),
    /// A descendant has not ended.
    Runs(String),
}

/// The entities among some ids, unless orchestrations only are meant (R2.90).
fn entities(ids: &[String], orchestrations_only: bool) -> impl Iterator<Item = String> {
    ids.iter().filter(move |id| !orchestrations_only && is_entity(id)).cloned()
}

impl Gateway {
    pub(super) async fn purge(
        &self,
        hub: u32,
        request: wire::PurgeInstancesRequest,
    ) -> Result<wire::PurgeInstancesResponse, Status> {
        let (recursive, only) = (request.recursive, request.is_orchestration);
        let (count, complete) = match request.request {
            Some(Request::InstanceId(id)) => {
                let entities =
                    self.purge_entities(hub, entities(std::slice::from_ref(&id), only)).await?;
                (entities + self.purge_ids(hub, vec![id], recursive).await?, true)
            }
            Some(Request::InstanceBatch(batch)) => {
                check_batch("instanceBatch.instanceIds", &batch.instance_ids)?;
                let ids = batch.instance_ids;
                let entities = self.purge_entities(hub, entities(&ids, only)).await?;
                (entities + self.purge_ids(hub, ids, recursive).await?, true)
            }
            Some(Request::PurgeInstanceFilter(filter)) => {
                self.purge_filter(hub, &filter, recursive).await?
            }
            None => {
                return Err(Status::invalid_argument(
                    "request: names nothing to purge; set instanceId, instanceBatch or purgeInstanceFilter",
                ));
            }
        };
        let hub = self.0.dispatcher.hub_name(hub);
        tracing::info!(%hub, count, recursive, complete, "purged");
        Ok(wire::PurgeInstancesResponse {
            deleted_instance_count: i32::try_from(count).unwrap_or(i32::MAX),
            is_complete: Some(complete),
        })
    }

    async fn purge_ids(
        &self,
        hub: u32,
        ids: Vec<String>,
        recursive: bool,
    ) -> Result<usize, Status> {
        // Entities went by a path of their own (R2.90).
        let ids: BTreeSet<String> = ids.into_iter().filter(|id| !is_entity(id)).collect();
        if !recursive {
            let targets = ids.into_iter().map(|instance| Target { instance, generation: 0 });
            return self.purge_targets(hub, targets).await;
        }
        let mut count = 0;
        for id in ids {
            match self.purge_tree(hub, id.clone()).await? {
                Tree::Nothing => {}
                Tree::Purged(instances) => count += instances,
                Tree::Runs(child) => {
                    return Err(Status::failed_precondition(format!(
                        "instanceId: {id} has ended, but {child} below it still runs; wait for its end or \
                         terminate it, or purge without recursive"
                    )));
                }
            }
        }
        Ok(count)
    }

    /// Purges what a filter finds, until its time is over. Whether it came to the end.
    async fn purge_filter(
        &self,
        hub: u32,
        filter: &wire::PurgeInstanceFilter,
        recursive: bool,
    ) -> Result<(usize, bool), Status> {
        let until = time_limit(filter.timeout.as_ref())?.map(|time| Instant::now() + time);
        let asked = statuses("purgeInstanceFilter.runtimeStatus", &filter.runtime_status)?;
        let ended = [Completed, Failed, Terminated].into_iter();
        let statuses: Vec<_> =
            ended.filter(|status| asked.is_empty() || asked.contains(status)).collect();
        if statuses.is_empty() {
            // Only statuses of instances that have not ended, which never go (R2.86).
            return Ok((0, true));
        }
        let list = List {
            hub,
            order: Order::Created,
            statuses,
            from: filter.created_time_from.as_ref().map(nanos),
            before: filter.created_time_to.as_ref().map(|to| nanos(to).saturating_add(1)),
            prefix: String::new(),
        };
        let _turn = self.0.purges.acquire().await.map_err(|_| closing())?;
        let partitions = self.0.dispatcher.partitions();
        let lanes = partitions.chunks(partitions.len().div_ceil(LANES).max(1)).map(|lane| {
            let list = &list;
            async move {
                let (mut count, mut complete) = (0, true);
                for partition in lane {
                    let part = self.purge_part(partition, list.clone(), recursive, until).await?;
                    count += part.0;
                    complete &= part.1;
                }
                Ok::<_, Status>((count, complete))
            }
        });
        let lanes = futures::future::try_join_all(lanes).await?;
        let count = lanes.iter().map(|(count, _)| count).sum();
        Ok((count, lanes.iter().all(|(_, complete)| *complete)))
    }

    /// The part of one partition.
    async fn purge_part(
        &self,
        partition: &Partition,
        list: List,
        recursive: bool,
        until: Option<Instant>,
    ) -> Result<(usize, bool), Status> {
        let (mut count, mut after) = (0, None::<Mark>);
        loop {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok((count, false));
            }
            let began = Instant::now();
            let query = OfList { list: (&list).into(), after: after.take(), limit: STEP as u32 };
            let slice = look(partition, query).await?;
            let targets = slice.marks.into_iter().map(|mark| mark.instance);
            if recursive {
                for instance in targets {
                    if until.is_some_and(|until| Instant::now() >= until) {
                        return Ok((count, false));
                    }
                    // One that still runs below keeps its tree; the others go.
                    if let Tree::Purged(instances) = self.purge_tree(list.hub, instance).await? {
                        count += instances;
                    }
                }
            } else {
                let targets: Vec<_> =
                    targets.map(|instance| Target { instance, generation: 0 }).collect();
                count += purge_step(partition, &list, targets).await?;
            }
            after = slice.reached;
            if after.is_none() {
                return Ok((count, true));
            }
            // As long as the step took: others have half of the time at least.
            tokio::time::sleep(began.elapsed().min(PAUSE_MAX)).await;
        }
    }

    /// Purges instances wherever they are.
    async fn purge_targets(
        &self,
        hub: u32,
        targets: impl Iterator<Item = Target>,
    ) -> Result<usize, Status> {
        let anything = List {
            hub,
            order: Order::Id,
            statuses: Vec::new(),
            from: None,
            before: None,
            prefix: String::new(),
        };
        let mut count = 0;
        for (partition, targets) in self.by_partition(hub, targets, |target| &target.instance) {
            for targets in targets.chunks(STEP) {
                count += purge_step(&partition, &anything, targets.to_vec()).await?;
            }
        }
        Ok(count)
    }

    /// Purges an instance and all that are below it (R2.89).
    async fn purge_tree(&self, hub: u32, root: String) -> Result<Tree, Status> {
        let mut levels: Vec<Vec<Target>> = Vec::new();
        let mut known = BTreeSet::from([root.clone()]);
        let mut level = vec![Known::root(root)];
        while !level.is_empty() {
            let (mut targets, mut below) = (Vec::new(), Vec::new());
            for seen in self.see(hub, level).await? {
                match (seen.ended, levels.is_empty()) {
                    (true, _) => {}
                    (false, true) => return Ok(Tree::Nothing),
                    (false, false) => return Ok(Tree::Runs(seen.target.instance)),
                }
                targets.push(seen.target);
                let new = seen.children.into_iter().filter(|it| known.insert(it.instance.clone()));
                below.extend(new);
            }
            if targets.is_empty() && levels.is_empty() {
                return Ok(Tree::Nothing);
            }
            levels.push(targets);
            level = below;
        }
        let mut count = 0;
        for targets in levels.into_iter().rev() {
            count += self.purge_targets(hub, targets.into_iter()).await?;
        }
        Ok(Tree::Purged(count))
    }

    /// Looks at instances, each at its partition. Those that are gone, or are somebody else's by now, are left
    /// out.
    async fn see(&self, hub: u32, instances: Vec<Known>) -> Result<Vec<Seen>, Status> {
        let mut all = Vec::new();
        for (partition, instances) in self.by_partition(hub, instances, |known| &known.instance) {
            for known in instances.chunks(LOOK) {
                let seen = dispatch::see(&partition, hub, known).await;
                all.extend(seen.map_err(|error| status::of_cluster(&error))?);
            }
        }
        Ok(all)
    }

    /// Things that are about instances, by the partition that holds each.
    pub(super) fn by_partition<T>(
        &self,
        hub: u32,
        things: impl IntoIterator<Item = T>,
        instance: impl Fn(&T) -> &str,
    ) -> Vec<(Partition, Vec<T>)> {
        let mut parts: BTreeMap<GroupId, (Partition, Vec<T>)> = BTreeMap::new();
        for thing in things {
            let partition = self.0.dispatcher.partition_of(hub, instance(&thing));
            let part =
                parts.entry(partition.id()).or_insert_with(|| (partition.clone(), Vec::new()));
            part.1.push(thing);
        }
        parts.into_values().collect()
    }
}

/// One command; the conditions of the list are checked again where it is applied.
async fn purge_step(
    partition: &Partition,
    list: &List,
    targets: Vec<Target>,
) -> Result<usize, Status> {
    if targets.is_empty() {
        return Ok(0);
    }
    let command = Purge {
        hub: list.hub,
        targets,
        statuses: list.statuses.iter().map(|status| i32::from(*status)).collect(),
        created_from: list.from,
        created_before: list.before,
        ended_before: None,
    };
    match propose(partition, Command::Purge(command)).await? {
        Reply::Purged { count } => Ok(count as usize),
        other => Err(Status::internal(format!("unexpected answer {other:?}"))),
    }
}

/// The time that a purge may take; unset and zero mean as long as it needs (R2.87).
fn time_limit(timeout: Option<&prost_types::Duration>) -> Result<Option<Duration>, Status> {
    let Some(timeout) = timeout.filter(|timeout| **timeout != prost_types::Duration::default())
    else {
        return Ok(None);
    };
    Duration::try_from(*timeout).map(Some).map_err(|_| {
        Status::invalid_argument(
            "purgeInstanceFilter.timeout: is negative; leave it unset for no limit",
        )
    })
}
