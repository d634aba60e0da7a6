//! What clients ask of entities (section 2.14): signals, single entities, pages over all partitions.

use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use durahub_proto::{Text, wire};
use prost::Message as _;
use tonic::{Response, Status};

use super::list::{closing, look, reach};
use super::{Gateway, SEND_LIMIT, status};
use crate::engine::command::{PurgeEntities, SignalEntity};
use crate::engine::read::{EntityList, EntitySlice, ListedEntity, OfEntities, OfEntity};
use crate::engine::state::entity_id;
use crate::engine::time::nanos;
use crate::engine::{Address, Command, Mark, Reply};
use crate::machine::Partition;
use crate::throttle::Unread;

/// Entities on a page when the client does not say, and at most (R2.102).
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;
/// Rows after which a page ends early; only a rare filter meets it.
const ROWS_MAX: u64 = 20_000;
/// Room that a page needs besides its entities.
const PAGE_OVERHEAD: usize = 4 * 1024;

impl Gateway {
    pub(super) async fn signal_entity(
        &self,
        hub: u32,
        mut request: wire::SignalEntityRequest,
    ) -> Result<wire::SignalEntityResponse, Status> {
        request.instance_id = self.check_entity(&request.instance_id)?;
        if request.name.is_empty() {
            return Err(Status::invalid_argument("name: must name the operation"));
        }
        let limits = self.limits();
        limits.check_name("name", &request.name).map_err(Status::invalid_argument)?;
        limits.check_name("requestId", &request.request_id).map_err(Status::invalid_argument)?;
        self.check_payload("input", request.input.as_ref())?;
        let entity = request.instance_id.clone();
        let command = Command::SignalEntity(SignalEntity { hub, request });
        self.propose(hub, &entity, command).await?;
        Ok(wire::SignalEntityResponse {})
    }

    /// An entity; one without a state does not exist (R2.101).
    pub(super) async fn get_entity(
        &self,
        hub: u32,
        request: &wire::GetEntityRequest,
        unread: &Unread,
    ) -> Result<Response<wire::GetEntityResponse>, Status> {
        let instance = self.check_entity(&request.instance_id)?;
        let (at, state) = (Address::new(hub, instance), request.include_state);
        let partition = self.0.dispatcher.partition_of(hub, &at.instance).clone();
        let with_worker = self.0.dispatcher.operations_handed_out(hub, &at.instance).await;
        let with_worker = with_worker.map_err(|error| status::of_completion(&error))?;
        let reached = reach(&partition).await?;
        let room = self.room(unread).await?;
        let found = reached.look(OfEntity { at, state }).await;
        let found = found.map_err(|error| status::of_cluster(&error))?;
        let Some(mut entity) = found.entity else {
            return Ok(Response::new(Default::default()));
        };
        // What is with a worker does not wait any more (R5.9).
        let with_worker = i32::try_from(with_worker).unwrap_or(i32::MAX);
        entity.backlog_queue_size = entity.backlog_queue_size.saturating_sub(with_worker).max(0);
        let bytes = entity.encoded_len();
        if bytes > SEND_LIMIT {
            return Err(Status::resource_exhausted(format!(
                "the state of this entity takes {bytes} bytes, the limit of a message is {SEND_LIMIT}; ask \
                 without it"
            )));
        }
        Ok(room.answer(wire::GetEntityResponse { exists: true, entity: Some(entity) }))
    }

    /// A page of entities: in the order of their ids or, where times are asked for, of their last change.
    pub(super) async fn query_entities(
        &self,
        hub: u32,
        request: wire::QueryEntitiesRequest,
        unread: &Unread,
    ) -> Result<Response<wire::QueryEntitiesResponse>, Status> {
        let query = request.query.unwrap_or_default();
        let count = match query.page_size.map(usize::try_from) {
            None | Some(Ok(0)) => PAGE,
            Some(Ok(asked)) => asked.min(PAGE_MAX),
            Some(Err(_)) => {
                return Err(Status::invalid_argument(format!(
                    "query.pageSize: is negative; ask for 1 to {PAGE_MAX}, or leave it unset for {PAGE}"
                )));
            }
        };
        let list = EntityList {
            hub,
            prefix: query.instance_id_starts_with.as_ref().map_or("", Text::as_str).to_owned(),
            from: query.last_modified_from.as_ref().map(nanos),
            to: query.last_modified_to.as_ref().map(nanos),
            transient: query.include_transient,
            states: query.include_state,
        };
        let after = read_token(query.continuation_token.as_ref(), list.is_by_time())?;
        // Before the turn: a client that does not read keeps none.
        let room = self.room(unread).await?;
        let _turn = self.0.pages.acquire().await.map_err(|_| closing())?;
        let by_time = list.is_by_time();
        let mut merge = Merge::new(self.0.dispatcher.partitions(), list, after.clone(), count);
        let (mut page, mut bytes) = (wire::QueryEntitiesResponse::default(), PAGE_OVERHEAD);
        let mut last = after;
        let reached = loop {
            match merge.next().await? {
                Next::End => break None,
                Next::Enough(reached) => break Some(reached),
                Next::Entity(mark, entity) => {
                    let entity = shown(entity);
                    bytes += entity.encoded_len() + 8;
                    if page.entities.len() == count || bytes > SEND_LIMIT {
                        break last;
                    }
                    last = Some(mark);
                    page.entities.push(entity);
                }
            }
        };
        page.continuation_token = reached.map(|mark| write_token(&mark, by_time).into());
        Ok(room.answer(page))
    }

    /// Deletes the states of entities, and counts them (R2.90).
    pub(super) async fn purge_entities(
        &self,
        hub: u32,
        ids: impl Iterator<Item = String>,
    ) -> Result<usize, Status> {
        let mut count = 0;
        let ids = ids.filter_map(|id| entity_id(&id));
        for (partition, instances) in self.by_partition(hub, ids, String::as_str) {
            let command = Command::PurgeEntities(PurgeEntities { hub, instances });
            match super::propose(&partition, command).await? {
                Reply::Purged { count: purged } => count += purged as usize,
                other => return Err(Status::internal(format!("unexpected answer {other:?}"))),
            }
        }
        Ok(count)
    }

    /// The id of an entity as it is stored, if it is one and not too long.
    fn check_entity(&self, id: &str) -> Result<String, Status> {
        self.check_id(id)?;
        entity_id(id).ok_or_else(|| {
            Status::invalid_argument("instanceId: does not name an entity; the form is @name@key")
        })
    }
}

/// What a list shows of an entity: not its state, where no page can hold that.
fn shown(entity: wire::EntityMetadata) -> wire::EntityMetadata {
    if entity.encoded_len() + 8 + PAGE_OVERHEAD <= SEND_LIMIT {
        return entity;
    }
    tracing::warn!(
        entity = entity.instance_id,
        "listed without its state, which no message can hold"
    );
    wire::EntityMetadata { serialized_state: None, ..entity }
}

/// Where a page ended: an id, or a zero, a second and an id.
fn write_token(mark: &Mark, by_time: bool) -> String {
    let time = [&[0], mark.time.to_be_bytes().as_slice()].concat();
    let time = if by_time { time.as_slice() } else { &[] };
    URL_SAFE_NO_PAD.encode([time, mark.instance.as_bytes()].concat())
}

fn parse_token(text: &str, by_time: bool) -> Option<Mark> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (time, id) = match (by_time, bytes.split_first()?) {
        (true, (0, rest)) => {
            let (time, id) = rest.split_first_chunk()?;
            (i64::from_be_bytes(*time), id)
        }
        (false, (1.., _)) => (0, bytes.as_slice()),
        _ => return None,
    };
    Some(Mark { time, instance: String::from_utf8(id.to_vec()).ok()? })
}

fn read_token(text: Option<&Text>, by_time: bool) -> Result<Option<Mark>, Status> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    parse_token(text.as_str(), by_time).map(Some).ok_or_else(|| {
        Status::invalid_argument(
            "query.continuationToken: not a token of this list; leave it unset for the first page, then send \
             back what the last page answered",
        )
    })
}

/// One partition's part of a list.
struct Source {
    partition: Partition,
    ahead: VecDeque<(Mark, wire::EntityMetadata)>,
    /// Everything up to here was looked at.
    reached: Option<Mark>,
    ended: bool,
}

/// The parts of all partitions as one list.
struct Merge {
    list: Arc<EntityList>,
    sources: Vec<Source>,
    /// Entities that one look asks for.
    slice: usize,
    rows: u64,
}

enum Next {
    Entity(Mark, wire::EntityMetadata),
    /// Enough rows were read; everything up to here was looked at.
    Enough(Mark),
    End,
}

impl Merge {
    fn new(partitions: &[Partition], list: EntityList, after: Option<Mark>, count: usize) -> Merge {
        let source = |partition: &Partition| Source {
            partition: partition.clone(),
            ahead: VecDeque::new(),
            reached: after.clone(),
            ended: false,
        };
        let sources: Vec<_> = partitions.iter().map(source).collect();
        // Ids are spread evenly: a fair share and some more is what a page takes from each.
        let share = count.div_ceil(sources.len().max(1));
        Merge { list: Arc::new(list), sources, slice: share + share / 4 + 2, rows: 0 }
    }

    async fn next(&mut self) -> Result<Next, Status> {
        loop {
            let fronts = self.sources.iter().enumerate();
            let first = fronts
                .filter_map(|(at, source)| Some((&source.ahead.front()?.0, at)))
                .min()
                .map(|(mark, at)| (mark.clone(), at));
            // A partition that was not looked at so far may still have an earlier one.
            let behind = self.sources.iter().position(|source| {
                let is_unknown = source.ahead.is_empty() && !source.ended;
                is_unknown
                    && first.as_ref().is_none_or(|(mark, _)| source.reached.as_ref() < Some(mark))
            });
            match (behind, first) {
                (None, None) => return Ok(Next::End),
                (None, Some((_, at))) => {
                    if let Some((mark, entity)) = self.sources[at].ahead.pop_front() {
                        return Ok(Next::Entity(mark, entity));
                    }
                }
                (Some(_), _) if self.rows > ROWS_MAX => {
                    let open = self.sources.iter().filter(|source| !source.ended);
                    let unknown = open.filter(|source| source.ahead.is_empty());
                    if let Some(reached) = unknown.filter_map(|it| it.reached.clone()).min() {
                        return Ok(Next::Enough(reached));
                    }
                    self.rows = 0;
                }
                (Some(at), _) => self.look(at).await?,
            }
        }
    }

    async fn look(&mut self, at: usize) -> Result<(), Status> {
        let source = &self.sources[at];
        let (list, after) = ((*self.list).clone(), source.reached.clone());
        let query = OfEntities { list, after, limit: self.slice as u32 };
        let EntitySlice { entities, reached, rows } = look(&source.partition, query).await?;
        let source = &mut self.sources[at];
        self.rows += rows;
        source.ended = reached.is_none();
        source.reached = reached.or_else(|| source.reached.take());
        source
            .ahead
            .extend(entities.into_iter().map(|ListedEntity { mark, entity }| (mark, entity)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_kind_of_list() {
        let mark = |time, id: &str| Mark { time, instance: id.to_owned() };
        for time in [i64::MIN, -1, 0, 1_700_000_000] {
            let token = write_token(&mark(time, "@a@\u{e9}"), true);
            assert_eq!(parse_token(&token, true), Some(mark(time, "@a@\u{e9}")));
            assert_eq!(parse_token(&token, false), None);
        }
        let token = write_token(&mark(7, "@a@b"), false);
        assert_eq!(parse_token(&token, false), Some(mark(0, "@a@b")));
        assert_eq!(parse_token(&token, true), None);
        for broken in ["", "!", "AA", "AAAAAAAAAAA", "____"] {
            assert_eq!(parse_token(broken, true), None, "{broken}");
        }
    }
}
