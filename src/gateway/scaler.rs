//! KEDA's external scaler: how many workers a task hub needs.
//!
//! KEDA calls with the metadata of a trigger and nothing else: no `taskhub` header and no token. So the hub is
//! named in the request, and the door only asks who calls; what that caller may see is judged here, by the same
//! grants. KEDA can show a client certificate.
//!
//! The metadata have the names of the managed service's own scaler. Figures are of the whole cluster: items that
//! wait for a worker and items that are with one. Items that wait alone would take workers away from their work.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use durahub_proto::scaler::external_scaler_server::ExternalScaler;
use durahub_proto::scaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
};
use futures::Stream;
use tonic::{Extensions, Request, Response, Status};

use super::Gateway;
use crate::access::{Identity, Subject};
use crate::dispatch::HubWork;
use crate::engine::read;
use crate::machine::RowsView;

/// Names of the metadata.
const TASK_HUB: &str = "taskhubName";
const KIND: &str = "workItemType";
const ITEMS_EACH: &str = "maxConcurrentWorkItemsCount";
/// Most items that one worker may be said to take at a time.
const ITEMS_EACH_MAX: i64 = 1_000_000;
/// How often an open stream looks whether there is work.
const LOOK: Duration = Duration::from_secs(1);

/// Kinds of work, as the metadata name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Orchestration,
    Activity,
    Entity,
}

/// A trigger: what it is about, and how much one worker takes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trigger {
    task_hub: String,
    kind: Kind,
    items_each: i64,
}

impl Trigger {
    fn read(object: &ScaledObjectRef) -> Result<Trigger, Status> {
        let wanted = |name: &str, what: &str| {
            let text = object.scaler_metadata.get(name).map_or("", |text| text.trim());
            match text {
                "" => Err(Status::invalid_argument(format!(
                    "{name}: is missing in the metadata of the trigger; set it to {what}"
                ))),
                text => Ok(text),
            }
        };
        let task_hub = wanted(TASK_HUB, "the name of a task hub")?.to_owned();
        const KINDS: &str = "Orchestration, Activity or Entity";
        let text = wanted(KIND, KINDS)?;
        let kind = match text.to_ascii_lowercase().as_str() {
            "orchestration" => Kind::Orchestration,
            "activity" => Kind::Activity,
            "entity" => Kind::Entity,
            _ => {
                return Err(Status::invalid_argument(format!("{KIND}: {text:?} is not {KINDS}")));
            }
        };
        let range = format!("a whole number from 1 to {ITEMS_EACH_MAX}");
        let text = wanted(ITEMS_EACH, &range)?;
        let items_each =
            text.parse().ok().filter(|count| (1..=ITEMS_EACH_MAX).contains(count)).ok_or_else(
                || Status::invalid_argument(format!("{ITEMS_EACH}: {text:?} is not {range}")),
            )?;
        Ok(Trigger { task_hub, kind, items_each })
    }

    /// In lower case, and without the hub's name: Kubernetes is particular about the names of metrics, and a
    /// metric belongs to one trigger anyway.
    fn metric(&self) -> String {
        let kind = match self.kind {
            Kind::Orchestration => "orchestration",
            Kind::Activity => "activity",
            Kind::Entity => "entity",
        };
        format!("durahub-{kind}-work-items")
    }

    fn count(&self, work: &HubWork) -> u64 {
        match self.kind {
            Kind::Orchestration => work.turns,
            Kind::Activity => work.activities,
            Kind::Entity => work.entities,
        }
    }
}

impl Gateway {
    /// The trigger of a call and the number of its hub, if the caller may read in it.
    async fn trigger(
        &self,
        extensions: &Extensions,
        object: &ScaledObjectRef,
    ) -> Result<(u32, Trigger), Status> {
        let trigger = Trigger::read(object)?;
        let name = &trigger.task_hub;
        Subject::of(extensions).note_hub(name);
        let may = extensions.get::<Arc<Identity>>().is_some_and(|who| who.may_read(name));
        if !may {
            return Err(Status::permission_denied(format!(
                "{TASK_HUB}: the task hub {name:?} may not be read: it needs the role reader in it; \
                 ask an operator for a grant (auth.grants)"
            )));
        }
        let known = self.0.metadata.peek(|rows| read::hub(&RowsView(rows), name));
        if let Some(hub) = known {
            return Ok((hub.id, trigger));
        }
        // Another node may have created it just now. A scaler never creates one.
        let hub = name.clone();
        let newest = self.0.metadata.read(move |rows| read::hub(&RowsView(rows), &hub)).await;
        match newest.map_err(|error| Status::unavailable(error.to_string()))? {
            Some(hub) => Ok((hub.id, trigger)),
            None => Err(Status::not_found(format!("{TASK_HUB}: there is no task hub {name:?}"))),
        }
    }

    /// How many items of the trigger's kind there are.
    async fn items(&self, hub: u32, trigger: &Trigger) -> Result<u64, Status> {
        match self.0.dispatcher.work_of(hub).await {
            Ok(work) => Ok(trigger.count(&work)),
            Err(error) => Err(Status::unavailable(format!(
                "the work of the task hub cannot be counted now: {error}; ask again"
            ))),
        }
    }
}

#[tonic::async_trait]
impl ExternalScaler for Gateway {
    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let (hub, trigger) = self.trigger(request.extensions(), request.get_ref()).await?;
        let result = self.items(hub, &trigger).await? > 0;
        Ok(Response::new(IsActiveResponse { result }))
    }

    type StreamIsActiveStream =
        Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let (hub, trigger) = self.trigger(request.extensions(), request.get_ref()).await?;
        let state = (self.clone(), trigger, None);
        let told = futures::stream::try_unfold(
            state,
            move |(gateway, trigger, before)| async move {
                loop {
                    tokio::select! {
                        () = gateway.closed() => {
                            return Err(Status::unavailable("this server is shutting down; ask again"));
                        }
                        () = gateway.0.dispatcher.hub_closed(hub) => {
                            return Err(Status::not_found(format!("{TASK_HUB}: the task hub was deleted")));
                        }
                        // At once the first time.
                        () = tokio::time::sleep(before.map_or(Duration::ZERO, |_| LOOK)) => {}
                    }
                    let result = gateway.items(hub, &trigger).await? > 0;
                    if before != Some(result) {
                        let state = (gateway, trigger, Some(result));
                        return Ok(Some((IsActiveResponse { result }, state)));
                    }
                }
            },
        );
        Ok(Response::new(Box::pin(told)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let (_, trigger) = self.trigger(request.extensions(), request.get_ref()).await?;
        let spec = MetricSpec {
            metric_name: trigger.metric(),
            target_size: trigger.items_each,
            target_size_float: trigger.items_each as f64,
        };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.get_ref();
        let object = scaled_object_ref.clone().unwrap_or_default();
        let (hub, trigger) = self.trigger(request.extensions(), &object).await?;
        let known = trigger.metric();
        if !metric_name.is_empty() && *metric_name != known {
            return Err(Status::invalid_argument(format!(
                "metricName: {metric_name:?} is not the metric of this trigger, {known}"
            )));
        }
        let count = self.items(hub, &trigger).await?;
        let value = MetricValue {
            metric_name: known,
            metric_value: i64::try_from(count).unwrap_or(i64::MAX),
            metric_value_float: count as f64,
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }
}
