//! `StreamInstanceHistory`: the committed history of one generation, in chunks (section 2.12).
//!
//! What was committed when the call began is sent, read a few rows at a time as the client takes it, so a
//! history of any length costs little memory and never holds up its partition. Each chunk fits into a
//! message; an event that does not ends the stream with a reason. What was read and not sent takes room of the
//! connection, as any answer does.

use std::collections::VecDeque;

use bytes::Bytes;
use durahub_proto::{Text, wire};
use futures::stream::{self, Stream};
use tonic::{Response, Status};

use super::list::{look, reach};
use super::{Gateway, SEND_LIMIT, status};
use crate::engine::Address;
use crate::engine::read::{HistoryPart, OfHead, OfHistory};
use crate::machine::Partition;
use crate::throttle::{Held, Unread, Unsent};

/// Size of a chunk, in bytes (R2.92).
const CHUNK: usize = 256 * 1024;

/// How often a history is begun that is gone before its first event was read.
const TRIES: usize = 20;

/// What the wire adds to an event, in bytes.
const FRAMING: usize = 8;

type Chunk = Result<wire::HistoryChunk, Status>;

/// A history on its way.
struct Reader {
    gateway: Gateway,
    unread: Unread,
    /// Room for what is ready.
    held: Option<Held>,
    partition: Partition,
    at: Address,
    generation: u64,
    /// Number of the next event to read, and of the one behind the last.
    next: u32,
    end: u32,
    ready: VecDeque<Bytes>,
    /// Number of the first event in `ready`.
    first: u32,
    /// Numbers of events that the reader is not shown: a worker sees no trace of a rewind (R4.82).
    hidden: Vec<u32>,
}

impl Gateway {
    /// The history of the current generation; empty when there is no such instance (R2.93), or `executionId`
    /// names another generation (R2.95).
    pub(super) async fn history(
        &self,
        hub: u32,
        request: wire::StreamInstanceHistoryRequest,
        unread: &Unread,
    ) -> Result<Response<impl Stream<Item = Chunk> + Send + use<>>, Status> {
        let mut reader = self.reader(hub, &request, unread).await?;
        // An instance that began anew before anything of it was read is simply read as it is now.
        for _ in 0..TRIES {
            if reader.end == 0 || reader.read().await? {
                break;
            }
            reader = self.reader(hub, &request, unread).await?;
        }
        let unsent = Unsent::default();
        let mut chunks = Response::new(stream::unfold(Some(reader), {
            let unsent = unsent.clone();
            move |reader| {
                let unsent = unsent.clone();
                async move {
                    let mut reader = reader?;
                    match reader.chunk().await {
                        Ok(None) => None,
                        Ok(Some(chunk)) => {
                            reader.room_of(&chunk).into_iter().for_each(|held| unsent.add(held));
                            Some((Ok(chunk), Some(reader)))
                        }
                        Err(status) => Some((Err(status), None)),
                    }
                }
            }
        }));
        chunks.extensions_mut().insert(unsent);
        Ok(chunks)
    }

    async fn reader(
        &self,
        hub: u32,
        request: &wire::StreamInstanceHistoryRequest,
        unread: &Unread,
    ) -> Result<Reader, Status> {
        let at = Address::new(hub, request.instance_id.as_str());
        let partition = self.0.dispatcher.partition_of(hub, &at.instance).clone();
        let head = look(&partition, OfHead { at: at.clone() }).await?.record;
        let wanted = request.execution_id.as_ref().map(Text::as_str).filter(|id| !id.is_empty());
        let head = head.filter(|head| wanted.is_none_or(|wanted| wanted == head.execution_id));
        let head = head.unwrap_or_default();
        let (generation, mut end, mut hidden) = (head.generation, head.history_events, Vec::new());
        if request.for_work_item_processing {
            // A worker is told what its turn began with, whatever was committed since (R2.94).
            let through = self.0.dispatcher.past_of_turn(hub, &at.instance).await;
            let through = through.map_err(|error| status::of_completion(&error))?;
            end = end.min(through.unwrap_or(end));
            hidden = head.hidden;
        }
        Ok(Reader {
            gateway: self.clone(),
            unread: unread.clone(),
            held: None,
            partition,
            at,
            generation,
            next: 0,
            end,
            ready: VecDeque::new(),
            first: 0,
            hidden,
        })
    }
}

impl Reader {
    /// The next chunk.
    async fn chunk(&mut self) -> Result<Option<wire::HistoryChunk>, Status> {
        let (mut chunk, mut bytes) = (wire::HistoryChunk::default(), 0);
        loop {
            // One look per chunk: what is ready beside a chunk waits in memory with it.
            if self.ready.is_empty() && !chunk.events.is_empty() {
                break;
            }
            if self.ready.is_empty() && self.next < self.end && !self.read().await? {
                return Err(Status::aborted(
                    "this history ended while it was read: the instance was purged or began anew; ask again",
                ));
            }
            let Some(event) = self.ready.front() else { break };
            if self.hidden.contains(&self.first) {
                self.ready.pop_front();
                self.first += 1;
                continue;
            }
            if event.len() > SEND_LIMIT && chunk.events.is_empty() {
                return Err(Status::resource_exhausted(format!(
                    "event {} of this history takes {} bytes, the limit of a message is {SEND_LIMIT}",
                    self.first,
                    event.len()
                )));
            }
            if bytes > 0 && bytes + event.len() > CHUNK {
                break;
            }
            bytes += event.len();
            self.first += 1;
            chunk.events.extend(self.ready.pop_front());
        }
        Ok((!chunk.events.is_empty()).then_some(chunk))
    }

    /// Reads some more. False when the generation is gone.
    async fn read(&mut self) -> Result<bool, Status> {
        let reached = reach(&self.partition).await?;
        // What it held was for events that are hidden.
        self.held = None;
        let mut room = self.gateway.room(&self.unread).await?;
        let query = OfHistory {
            at: self.at.clone(),
            generation: self.generation,
            from: self.next,
            end: self.end,
            bytes: CHUNK as u32,
        };
        let part = reached.look(query).await.map_err(|error| status::of_cluster(&error))?.part;
        let Some(HistoryPart { events, next }) = part else { return Ok(false) };
        self.held = Some(room.split(events.iter().map(|event| event.len() + FRAMING).sum()));
        self.ready.extend(events);
        self.next = next;
        Ok(true)
    }

    /// The room that was taken for what is in a chunk.
    fn room_of(&mut self, chunk: &wire::HistoryChunk) -> Option<Held> {
        let held = self.held.as_mut()?;
        Some(held.split(chunk.events.iter().map(|event| event.len() + FRAMING).sum()))
    }
}
