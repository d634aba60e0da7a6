//! `CreateTaskHub` and `DeleteTaskHub` (R2.97), and our own `ListTaskHubs`.

use std::ops::Bound;
use std::sync::Arc;

use durahub_proto::own::task_hub_service_server::TaskHubService;
use durahub_proto::{own, wire};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::list::look;
use super::{Gateway, hub_name, propose};
use crate::access::Identity;
use crate::engine::command::DeleteHub;
use crate::engine::{Command, View, read};

/// Most task hubs on a page.
const PAGE_MAX: usize = 1000;

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
        propose(&self.0.metadata, command.into_bytes()).await?;
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
        let page = look(&self.0.metadata, move |view: &dyn View| {
            let hubs = read::hubs(view);
            let behind = (Bound::Excluded(request.after), Bound::Unbounded);
            let sees = |name: &str| who.as_ref().is_some_and(|who| who.sees(name));
            let rest = hubs.range::<String, _>(behind).filter(|(name, _)| sees(name));
            let mut rest = rest.peekable();
            let hub = |(name, hub): (&String, &crate::engine::state::HubRecord)| own::TaskHub {
                name: name.clone(),
                created: hub.created,
            };
            let task_hubs: Vec<_> = rest.by_ref().take(count).map(hub).collect();
            let last = task_hubs.last().map(|hub| hub.name.clone());
            let next_after = last.filter(|_| rest.peek().is_some()).unwrap_or_default();
            own::ListTaskHubsResponse { task_hubs, next_after }
        });
        page.await.map(Response::new)
    }
}
