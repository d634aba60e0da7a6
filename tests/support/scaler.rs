//! KEDA, as far as a scaler sees it: metadata of a trigger and four calls, without any header.

use std::time::Duration;

use durahub_proto::scaler::external_scaler_client::ExternalScalerClient;
use durahub_proto::scaler::{GetMetricsRequest, ScaledObjectRef};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::client::{PATIENCE, good};

/// The generated client.
pub type Rpc = ExternalScalerClient<Channel>;

/// A trigger with these metadata; an empty text leaves one out.
pub fn object(task_hub: &str, kind: &str, items_each: &str) -> ScaledObjectRef {
    let all = [
        ("taskhubName", task_hub),
        ("workItemType", kind),
        ("maxConcurrentWorkItemsCount", items_each),
        // KEDA sends what it read itself, too.
        ("scalerAddress", "durahub:8080"),
    ];
    let given = all.into_iter().filter(|(_, value)| !value.is_empty());
    ScaledObjectRef {
        name: "workers".into(),
        namespace: "apps".into(),
        scaler_metadata: given.map(|(name, value)| (name.into(), value.into())).collect(),
    }
}

/// How many items of a kind there are.
///
/// # Errors
/// The server's refusal.
pub async fn metric(rpc: &mut Rpc, object: ScaledObjectRef) -> Result<i64, Status> {
    let request = GetMetricsRequest { scaled_object_ref: Some(object), metric_name: String::new() };
    let answer = rpc.get_metrics(Request::new(request)).await?.into_inner();
    assert_eq!(answer.metric_values.len(), 1, "{answer:?}");
    let value = &answer.metric_values[0];
    assert!((value.metric_value as f64 - value.metric_value_float).abs() < 0.5, "{value:?}");
    Ok(value.metric_value)
}

/// Waits until the hub has so many turns, activities and entities.
pub async fn until(rpc: &mut Rpc, task_hub: &str, wanted: [i64; 3]) {
    let began = tokio::time::Instant::now();
    loop {
        let mut found = [0; 3];
        for (count, kind) in found.iter_mut().zip(["Orchestration", "Activity", "Entity"]) {
            let object = object(task_hub, kind, "10");
            *count = good(kind, metric(rpc, object.clone()).await.map(tonic::Response::new));
            let active = good(kind, rpc.is_active(object).await).result;
            // The two are asked one after the other: work may come or go in between.
            if active != (*count > 0) {
                *count = -1;
            }
        }
        if found == wanted {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{task_hub}: {found:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
