//! `CreateTaskHub` and `DeleteTaskHub` (R2.97), and our own `ListTaskHubs` and `SetRetention`.

use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use durahub_proto::own::task_hub_service_server::TaskHubService;
use durahub_proto::{own, wire};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::{Gateway, hub_name, propose, status};
use crate::access::Identity;
use crate::dispatch::Retention;
use crate::engine::command::{DeleteHub, KeepFor, SetRetention};
use crate::engine::state::HubRecord;
use crate::engine::{Command, Reply, read};
use crate::machine::RowsView;
use crate::throttle::Unread;

/// Most task hubs on a page.
const PAGE_MAX: usize = 1000;
/// Times that ended instances may stay, in milliseconds: a second to ten years.
const KEPT: RangeInclusive<u64> = 1_000..=315_576_000_000;

impl Gateway {
    pub(super) async fn create_task_hub(
        &self,
        headers: &MetadataMap,
        request: &wire::CreateTaskHubRequest,
    ) -> Result<wire::CreateTaskHubResponse, Status> {
        self.check_hub_calls()?;
        self.begin_hub(hub_name(headers)?, request.recreate_if_exists).await?;
        Ok(wire::CreateTaskHubResponse {})
    }

    /// Frees the name at once; what the hub had goes in the background, after restarts too.
    pub(super) async fn delete_task_hub(
        &self,
        headers: &MetadataMap,
    ) -> Result<wire::DeleteTaskHubResponse, Status> {
        self.check_hub_calls()?;
        // Not `hub`, which would create an unknown one only to delete it.
        let name = hub_name(headers)?.to_owned();
        let command = Command::DeleteHub(DeleteHub { name: name.clone() });
        propose(&self.0.metadata, command).await?;
        tracing::info!(hub = name, "task hub deleted");
        self.close_deleted_hubs().await;
        Ok(wire::DeleteTaskHubResponse {})
    }

    fn check_hub_calls(&self) -> Result<(), Status> {
        if self.0.settings.hub_calls {
            return Ok(());
        }
        Err(Status::permission_denied(
            "creating and deleting task hubs by call is switched off; start the server with --task-hub-calls=true",
        ))
    }
}

#[tonic::async_trait]
impl TaskHubService for Gateway {
    async fn list_task_hubs(
        &self,
        request: Request<own::ListTaskHubsRequest>,
    ) -> Result<Response<own::ListTaskHubsResponse>, Status> {
        // Nobody hears of a hub in which they have no role.
        let who = request.extensions().get::<Arc<Identity>>().cloned();
        let unread = Unread::of(request.extensions());
        let request = request.into_inner();
        let count = match usize::try_from(request.page_size) {
            Ok(0) => PAGE_MAX,
            Ok(count) if count <= PAGE_MAX => count,
            _ => {
                return Err(Status::invalid_argument(format!(
                    "page_size: {} is not from 0 to {PAGE_MAX}",
                    request.page_size
                )));
            }
        };
        let usual = self.0.settings.rules.get().retention;
        let metadata = &self.0.metadata;
        let is_here = metadata.catch_up().await.map_err(|error| status::of_cluster(&error))?;
        if !is_here {
            return Err(Status::unavailable("this node is still catching up; ask again"));
        }
        let room = self.room(&unread).await?;
        let own = metadata.clone();
        let hubs = move || own.peek(|rows| read::hubs(&RowsView(rows)));
        let hubs = tokio::task::spawn_blocking(hubs).await;
        let hubs = hubs.map_err(|error| Status::internal(format!("read task hubs: {error}")))?;
        let page = {
            let behind = (Bound::Excluded(request.after), Bound::Unbounded);
            let sees = |name: &str| who.as_ref().is_some_and(|who| who.sees(name));
            let rest = hubs.range::<String, _>(behind).filter(|(name, _)| sees(name));
            let mut rest = rest.peekable();
            let hub = |(name, hub): (&String, &HubRecord)| shown(name, hub, &usual);
            let task_hubs: Vec<_> = rest.by_ref().take(count).map(hub).collect();
            let last = task_hubs.last().map(|hub| hub.name.clone());
            let next_after = last.filter(|_| rest.peek().is_some()).unwrap_or_default();
            own::ListTaskHubsResponse { task_hubs, next_after }
        };
        Ok(room.answer(page))
    }

    async fn set_retention(
        &self,
        request: Request<own::SetRetentionRequest>,
    ) -> Result<Response<own::SetRetentionResponse>, Status> {
        // Not `hub`, which would create an unknown one.
        let name = hub_name(request.metadata())?.to_owned();
        let metadata = &self.0.metadata;
        let known = async || {
            let hub = metadata.read(|rows| read::hub(&RowsView(rows), &name)).await;
            let hub = hub.map_err(|error| status::of_cluster(&error))?;
            hub.ok_or_else(|| Status::not_found(format!("Task hub not found: {name}")))
        };
        known().await?;
        let own::SetRetentionRequest { completed, failed, terminated } = request.into_inner();
        let command = SetRetention {
            name: name.clone(),
            completed: keep_for("completed", completed)?,
            failed: keep_for("failed", failed)?,
            terminated: keep_for("terminated", terminated)?,
        };
        match propose(metadata, Command::SetRetention(command)).await? {
            Reply::Hub { .. } => {}
            other => return Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
        let hub = known().await?;
        let usual = self.0.settings.rules.get().retention;
        let retention = usual.of(&hub);
        tracing::info!(hub = name, ?retention, "retention set");
        let task_hub = Some(shown(&name, &hub, &usual));
        Ok(Response::new(own::SetRetentionResponse { task_hub }))
    }
}

/// A hub as its lists show it.
fn shown(name: &str, hub: &HubRecord, usual: &Retention) -> own::TaskHub {
    let (holds, own) = (usual.of(hub), hub.retention.unwrap_or_default());
    let time = |time: Option<Duration>, own: Option<u64>| {
        let milliseconds = time.map_or(0, |time| time.as_millis().try_into().unwrap_or(u64::MAX));
        Some(own::Retention { milliseconds, configured: own.is_none() })
    };
    own::TaskHub {
        name: name.to_owned(),
        created: hub.created,
        completed: time(holds.completed, own.completed),
        failed: time(holds.failed, own.failed),
        terminated: time(holds.terminated, own.terminated),
    }
}

fn keep_for(field: &str, time: Option<own::KeepFor>) -> Result<Option<KeepFor>, Status> {
    let Some(own::KeepFor { milliseconds }) = time else { return Ok(None) };
    if let Some(asked) = milliseconds.filter(|time| *time != 0 && !KEPT.contains(time)) {
        return Err(Status::invalid_argument(format!(
            "{field}: {asked} milliseconds are not from a second to ten years; 0 keeps instances for ever"
        )));
    }
    Ok(Some(KeepFor { milliseconds }))
}
