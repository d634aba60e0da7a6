//! Our own `ListEntityLocks`: who holds which entity, since when, and who waits for it.

use durahub_proto::own::entity_service_server::EntityService;
use durahub_proto::own::{self, EntityLock, ListEntityLocksRequest, ListEntityLocksResponse};
use tonic::{Request, Response, Status};

use super::Gateway;
use super::list::{closing, look};
use crate::engine::read::{self, LockParty, OfLocks};
use crate::engine::state::entity_id;
use crate::throttle::Unread;

/// Entities on a page when the client does not say, and at most.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

#[tonic::async_trait]
impl EntityService for Gateway {
    async fn list_entity_locks(
        &self,
        request: Request<ListEntityLocksRequest>,
    ) -> Result<Response<ListEntityLocksResponse>, Status> {
        let hub = self.hub(request.metadata()).await?;
        let unread = Unread::of(request.extensions());
        let ListEntityLocksRequest { after, page_size, prefix } = request.into_inner();
        let count = match usize::try_from(page_size) {
            Ok(0) => PAGE,
            Ok(count) if count <= PAGE_MAX => count,
            _ => {
                return Err(Status::invalid_argument(format!(
                    "page_size: {page_size} is not from 0 to {PAGE_MAX}"
                )));
            }
        };
        // Names are stored in lower case (R5.3); a part of an id is taken as it is.
        let prefix = entity_id(&prefix).unwrap_or(prefix);
        let room = self.room(&unread).await?;
        let _turn = self.0.pages.acquire().await.map_err(|_| closing())?;
        let mut locks: Vec<read::EntityLock> = Vec::new();
        for partition in self.0.dispatcher.partitions() {
            let (prefix, after) = (prefix.clone(), after.clone());
            // One more than fit tells whether there are more.
            let query = OfLocks { hub, prefix, after, limit: count as u32 + 1 };
            locks.extend(look(partition, query).await?.locks);
        }
        locks.sort_unstable_by(|a, b| a.entity.cmp(&b.entity));
        let has_more = locks.len() > count;
        locks.truncate(count);
        let next_after = match locks.last() {
            Some(last) if has_more => last.entity.clone(),
            _ => String::new(),
        };
        let locks = locks.into_iter().map(shown).collect();
        Ok(room.answer(ListEntityLocksResponse { locks, next_after }))
    }
}

fn shown(lock: read::EntityLock) -> EntityLock {
    EntityLock {
        entity_id: lock.entity,
        holder: lock.holder.map(party),
        waiting: lock.waiting,
        first_waiting: lock.first.into_iter().map(party).collect(),
        operations: lock.operations,
    }
}

fn party(party: LockParty) -> own::LockParty {
    own::LockParty {
        instance_id: party.instance,
        critical_section_id: party.section,
        since: party.since,
    }
}
