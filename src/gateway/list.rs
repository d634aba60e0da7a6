//! `QueryInstances` and `ListInstanceIds`: pages over all partitions in one order (sections 2.9 and 2.10).
//!
//! Each partition yields its part of the list slice by slice; a merge takes the first of them all, again
//! and again. A page ends when it has as many instances as asked for, or as many bytes as a message may
//! have, or when enough rows were looked at. Its token says how far it came, so the next page goes on there,
//! whatever was created, ended or purged meanwhile.
//!
//! A list never takes dispatch down: a slice reads a few hundred rows at most before it lets the partition
//! go, on a thread that may block, and only few pages are gathered at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use durahub_proto::{Text, wire};
use prost::Message as _;
use tonic::{Response, Status};

use super::{Gateway, SEND_LIMIT, status};
use crate::dispatch;
use crate::engine::Mark;
use crate::engine::read::{List, OfList, OfListed, Order, Query, Slice};
use crate::engine::time::nanos;
use crate::machine::Partition;
use crate::throttle::Unread;

/// Instances on a page when the client does not say (R2.75, R2.82).
const PAGE: usize = 100;
/// Most instances on a page.
const PAGE_MAX: usize = 1000;
/// Most instances that one look at a partition yields.
const SLICE_MAX: usize = 128;
/// States that are gathered at a time, without their payloads and with them.
const STATES: [usize; 2] = [64, 4];
/// Rows after which a page ends early; only lists by prefix with a rare condition meet it.
const ROWS_MAX: u64 = 20_000;
/// Pages that are gathered at the same time; others wait.
pub(super) const PAGES_AT_ONCE: usize = 4;
/// Room that a page needs besides its states.
const PAGE_OVERHEAD: usize = 4 * 1024;

impl Gateway {
    /// A page of instances with their states.
    pub(super) async fn query(
        &self,
        hub: u32,
        request: wire::QueryInstancesRequest,
        unread: &Unread,
    ) -> Result<Response<wire::QueryInstancesResponse>, Status> {
        let query = request.query.unwrap_or_default();
        let count = page_size("query.maxInstanceCount", query.max_instance_count)?;
        let prefix = query.instance_id_prefix.as_ref().map_or("", Text::as_str);
        let list = List {
            hub,
            order: if prefix.is_empty() { Order::Created } else { Order::Id },
            statuses: statuses("query.runtimeStatus", &query.runtime_status)?,
            from: query.created_time_from.as_ref().map(nanos),
            // The end is included to the nanosecond (R2.74).
            before: query.created_time_to.as_ref().map(|to| nanos(to).saturating_add(1)),
            prefix: prefix.to_owned(),
        };
        let token = query.continuation_token.as_ref();
        let after = Token::read("query.continuationToken", token, list.order)?;
        let payloads = query.fetch_inputs_and_outputs;
        // Before the turn: a client that does not read keeps none.
        let room = self.room(unread).await?;
        let _turn = self.0.pages.acquire().await.map_err(|_| closing())?;
        let mut merge = Merge::begin(self, list, after, count).await?;

        let (mut page, mut bytes) = (wire::QueryInstancesResponse::default(), PAGE_OVERHEAD);
        let mut last: Option<Mark> = None;
        let mut reached = None;
        'page: while reached.is_none() {
            let wanted =
                (count - page.orchestration_state.len()).min(STATES[usize::from(payloads)]);
            let mut marks = Vec::with_capacity(wanted);
            while marks.len() < wanted {
                match merge.next().await? {
                    Next::Mark(source, mark) => marks.push((source, mark)),
                    Next::Enough(mark) => {
                        reached = Some(Some(mark));
                        break;
                    }
                    Next::End => {
                        reached = Some(None);
                        break;
                    }
                }
            }
            for (mark, state) in merge.states(marks, payloads).await? {
                // It has changed since it was found: it is not what was asked for any more.
                let Some(state) = state else { continue };
                let state = shown(state);
                let size = state.encoded_len() + 8;
                if bytes + size > SEND_LIMIT {
                    reached = Some(last);
                    break 'page;
                }
                bytes += size;
                page.orchestration_state.push(state);
                last = Some(mark);
            }
            if page.orchestration_state.len() == count && reached.is_none() {
                // Only another instance makes another page: none is empty at the end (R2.76).
                reached = Some(match merge.next().await? {
                    Next::End => None,
                    Next::Mark(..) | Next::Enough(_) => last.clone(),
                });
            }
        }
        page.continuation_token = Token::write(&merge.list, reached.flatten());
        Ok(room.answer(page))
    }

    /// A page of ids of terminal instances, in the order in which they ended (R2.83).
    pub(super) async fn list_ids(
        &self,
        hub: u32,
        request: wire::ListInstanceIdsRequest,
        unread: &Unread,
    ) -> Result<Response<wire::ListInstanceIdsResponse>, Status> {
        let count = page_size("pageSize", request.page_size)?;
        let list = List {
            hub,
            order: Order::Ended,
            statuses: statuses("runtimeStatus", &request.runtime_status)?,
            from: request.completed_time_from.as_ref().map(nanos),
            before: request.completed_time_to.as_ref().map(nanos),
            prefix: String::new(),
        };
        let key = request.last_instance_key.as_ref();
        let after = Token::read("lastInstanceKey", key, list.order)?;
        let room = self.room(unread).await?;
        let _turn = self.0.pages.acquire().await.map_err(|_| closing())?;
        let mut merge = Merge::begin(self, list, after, count).await?;

        let (mut page, mut bytes) = (wire::ListInstanceIdsResponse::default(), PAGE_OVERHEAD);
        let mut last = None;
        let reached = loop {
            match merge.next().await? {
                Next::End => break None,
                Next::Enough(mark) => break Some(mark),
                Next::Mark(_, mark) => {
                    bytes += mark.instance.len() + 8;
                    if page.instance_ids.len() == count || bytes > SEND_LIMIT {
                        break last;
                    }
                    page.instance_ids.push(mark.instance.clone());
                    last = Some(mark);
                }
            }
        };
        page.last_instance_key = Token::write(&merge.list, reached);
        Ok(room.answer(page))
    }
}

/// How many a page may have; 0 leaves it to the server.
fn page_size(field: &str, asked: i32) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(PAGE),
        Ok(asked) => Ok(asked.min(PAGE_MAX)),
        Err(_) => Err(Status::invalid_argument(format!(
            "{field}: {asked} is negative; ask for 1 to {PAGE_MAX}, or 0 for the default of {PAGE}"
        ))),
    }
}

/// The statuses that a filter names. An unknown number must not read as "any".
pub(super) fn statuses(
    field: &str,
    numbers: &[i32],
) -> Result<Vec<wire::OrchestrationStatus>, Status> {
    let status = |number: &i32| {
        wire::OrchestrationStatus::try_from(*number).map_err(|_| {
            Status::invalid_argument(format!(
                "{field}: {number} is no orchestration status; see OrchestrationStatus in the protocol"
            ))
        })
    };
    numbers.iter().map(status).collect()
}

pub(super) fn closing() -> Status {
    Status::unavailable("this server is shutting down; ask again")
}

/// What a list shows of an instance: never why it failed without its payloads (R2.80), and no payloads where
/// they alone are more than a page may hold. `GetInstance` says how large such a state is.
fn shown(state: wire::OrchestrationState) -> wire::OrchestrationState {
    if state.encoded_len() + 8 + PAGE_OVERHEAD <= SEND_LIMIT {
        return state;
    }
    tracing::warn!(
        instance = state.instance_id,
        bytes = state.encoded_len(),
        limit = SEND_LIMIT,
        "listed without its payloads, which no message can hold"
    );
    wire::OrchestrationState {
        input: None,
        output: None,
        custom_status: None,
        failure_details: None,
        ..state
    }
}

/// How far a page came, as opaque text.
#[derive(Clone, PartialEq, prost::Message)]
struct Token {
    /// The order that the place belongs to: 1 created, 2 ended, 3 id.
    #[prost(uint32, tag = "1")]
    order: u32,
    #[prost(int64, tag = "2")]
    time: i64,
    #[prost(string, tag = "3")]
    instance: String,
}

impl Token {
    fn order(order: Order) -> u32 {
        match order {
            Order::Created => 1,
            Order::Ended => 2,
            Order::Id => 3,
        }
    }

    fn write(list: &List, reached: Option<Mark>) -> Option<Text> {
        let Mark { time, instance } = reached?;
        let token = Token { order: Token::order(list.order), time, instance };
        Some(URL_SAFE_NO_PAD.encode(token.encode_to_vec()).into())
    }

    /// Reads what a client sent back; unset and empty mean the first page (R2.78, R2.82).
    fn read(field: &str, text: Option<&Text>, order: Order) -> Result<Option<Mark>, Status> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
        let bytes = URL_SAFE_NO_PAD.decode(text.as_str()).ok();
        bytes
            .and_then(|bytes| Token::decode(bytes.as_slice()).ok())
            .filter(|token| token.order == Token::order(order))
            .map(|Token { time, instance, .. }| Some(Mark { time, instance }))
            .ok_or_else(|| {
                Status::invalid_argument(format!(
                    "{field}: not a token of this list; leave it unset for the first page, then send back \
                     what the last page of the same filter answered"
                ))
            })
    }
}

/// One partition's part of a list.
struct Source {
    partition: Partition,
    ahead: VecDeque<Mark>,
    /// Everything up to here was looked at; before the first look, where the list begins.
    reached: Option<Mark>,
    ended: bool,
}

/// The parts of all partitions as one list.
pub(super) struct Merge {
    list: Arc<List>,
    sources: Vec<Source>,
    /// Instances that one look asks for.
    slice: usize,
    rows: u64,
}

/// The next thing in a list.
pub(super) enum Next {
    /// An instance, and the number of its partition in the merge.
    Mark(usize, Mark),
    /// Enough rows were read; everything up to here was looked at.
    Enough(Mark),
    /// There are no more.
    End,
}

impl Merge {
    /// Begins behind `after`, with a first look at every partition, so that the list has whatever was
    /// acknowledged before (S12).
    pub(super) async fn begin(
        gateway: &Gateway,
        list: List,
        after: Option<Mark>,
        count: usize,
    ) -> Result<Merge, Status> {
        let partitions = gateway.0.dispatcher.partitions();
        let source = |partition: &Partition| Source {
            partition: partition.clone(),
            ahead: VecDeque::new(),
            reached: after.clone(),
            ended: false,
        };
        let sources: Vec<_> = partitions.iter().map(source).collect();
        // Ids are spread evenly: a fair share and some more is what a page takes from each.
        let share = count.div_ceil(sources.len().max(1));
        let slice = (share + share / 4 + 2).min(SLICE_MAX);
        let mut merge = Merge { list: Arc::new(list), sources, slice, rows: 0 };
        let looks = merge.sources.iter().map(|source| source.look(&merge.list, slice));
        let slices = futures::future::try_join_all(looks).await?;
        for (at, slice) in slices.into_iter().enumerate() {
            merge.take_in(at, slice);
        }
        Ok(merge)
    }

    fn take_in(&mut self, at: usize, slice: Slice) {
        self.rows += slice.rows;
        let source = &mut self.sources[at];
        source.ahead.extend(slice.marks);
        source.ended = slice.reached.is_none();
        source.reached = slice.reached.or_else(|| source.reached.take());
    }

    /// The next instance of the list.
    pub(super) async fn next(&mut self) -> Result<Next, Status> {
        loop {
            let fronts = self.sources.iter().enumerate();
            let first = fronts
                .filter_map(|(at, source)| source.ahead.front().map(|mark| (mark, at)))
                .min()
                .map(|(mark, at)| (at, mark.clone()));
            // A partition that was not looked at so far may still have an earlier one.
            let behind = self.sources.iter().position(|source| {
                let unknown = source.ahead.is_empty() && !source.ended;
                unknown
                    && first.as_ref().is_none_or(|(_, mark)| source.reached.as_ref() < Some(mark))
            });
            match (behind, first) {
                (None, None) => return Ok(Next::End),
                (None, Some((at, mark))) => {
                    self.sources[at].ahead.pop_front();
                    return Ok(Next::Mark(at, mark));
                }
                (Some(_), _) if self.rows > ROWS_MAX => {
                    let open = self.sources.iter().filter(|source| !source.ended);
                    let unknown = open.filter(|source| source.ahead.is_empty());
                    if let Some(mark) = unknown.filter_map(|source| source.reached.clone()).min() {
                        return Ok(Next::Enough(mark));
                    }
                    self.rows = 0;
                }
                (Some(at), _) => {
                    let slice = self.sources[at].look(&self.list, self.slice).await?;
                    self.take_in(at, slice);
                }
            }
        }
    }

    /// The states of some instances, in the order in which they are given; `None` for one that has changed
    /// so that it no longer stands there.
    async fn states(
        &self,
        marks: Vec<(usize, Mark)>,
        payloads: bool,
    ) -> Result<Vec<(Mark, Option<wire::OrchestrationState>)>, Status> {
        let mut wanted: Vec<Vec<Mark>> = vec![Vec::new(); self.sources.len()];
        for (at, mark) in &marks {
            wanted[*at].push(mark.clone());
        }
        let mut found: Vec<VecDeque<_>> = Vec::with_capacity(wanted.len());
        for (source, wanted) in self.sources.iter().zip(wanted) {
            if wanted.is_empty() {
                found.push(VecDeque::new());
                continue;
            }
            let mut states = VecDeque::with_capacity(wanted.len());
            // As many at a time as fit into an answer.
            while states.len() < wanted.len() {
                let (list, marks) = ((&*self.list).into(), wanted[states.len()..].to_vec());
                let part = look(&source.partition, OfListed { list, marks, payloads }).await?;
                if part.states.is_empty() {
                    return Err(Status::internal("a list of states without states"));
                }
                states.extend(part.states.into_iter().map(|state| state.state));
            }
            found.push(states);
        }
        let state = |(at, mark): (usize, Mark)| (mark, found[at].pop_front().flatten());
        Ok(marks.into_iter().map(state).collect())
    }
}

impl Source {
    async fn look(&self, list: &Arc<List>, limit: usize) -> Result<Slice, Status> {
        let (list, after, limit) = ((&**list).into(), self.reached.clone(), limit as u32);
        look(&self.partition, OfList { list, after, limit }).await
    }
}

/// Reads from a partition what was committed before, on a thread that may wait for a disk.
pub(super) async fn look<Q: Query>(partition: &Partition, query: Q) -> Result<Q::Answer, Status> {
    dispatch::look(partition, query).await.map_err(|error| status::of_cluster(&error))
}

/// Waits until what was committed before can be read.
pub(super) async fn reach(partition: &Partition) -> Result<dispatch::Reach<'_>, Status> {
    dispatch::reach(partition).await.map_err(|error| status::of_cluster(&error))
}
