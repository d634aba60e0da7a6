//! Pages of entities over all partitions, by id and by the last change.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use durahub_proto::wire;

use crate::support::client::good;
use crate::support::{Client, TestServer, Worker, WorkerOptions};
use crate::{ok, signal};

/// Signals entities and carries the operations out.
async fn change(client: &Client, worker: &mut Worker, ids: &[String]) {
    for id in ids {
        signal(client, id, "add").await;
    }
    let mut left = ids.len();
    while left > 0 {
        let batch = worker.next_entity().await;
        let operations = batch.request.operation_requests.len();
        worker.complete_entity(&batch, ok(&vec!["x"; operations], "state")).await;
        left -= operations;
    }
}

async fn page(
    client: &Client,
    query: &wire::EntityQuery,
) -> Result<wire::QueryEntitiesResponse, tonic::Status> {
    let request = wire::QueryEntitiesRequest { query: Some(query.clone()) };
    client.rpc().query_entities(request).await.map(tonic::Response::into_inner)
}

/// R2.102, R5.8: by time, too, pages have what was asked for, each entity that does not change once. One that
/// changes meanwhile may come again, and is never left out.
#[tokio::test]
async fn pages_by_time_have_all_that_changed_in_it() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let ids = |of: &str| (0..60).map(|n| format!("@{of}@{n:02}")).collect::<Vec<_>>();
    change(&client, &mut worker, &ids("early")).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let middle = SystemTime::now();
    tokio::time::sleep(Duration::from_millis(20)).await;
    change(&client, &mut worker, &ids("late")).await;

    let mut query = wire::EntityQuery {
        last_modified_from: Some(middle.into()),
        page_size: Some(7),
        ..Default::default()
    };
    let (mut seen, mut times, mut pages) = (Vec::new(), Vec::new(), 0);
    loop {
        let found = page(&client, &query).await.expect("a page");
        assert!(found.entities.len() <= 7);
        times
            .extend(found.entities.iter().map(|it| it.last_modified_time.expect("is set").seconds));
        seen.extend(found.entities.into_iter().map(|entity| entity.instance_id));
        pages += 1;
        if pages == 2 {
            // One that was seen, and one that was not.
            let other = ids("late").into_iter().find(|id| !seen.contains(id)).expect("is left");
            change(&client, &mut worker, &[seen[0].clone(), other]).await;
        }
        query.continuation_token = found.continuation_token;
        if query.continuation_token.is_none() {
            break;
        }
    }
    assert!(pages >= 60 / 7, "{pages}");
    assert!(times.is_sorted(), "in the order of the last change");
    let distinct: BTreeSet<_> = seen.iter().cloned().collect();
    assert_eq!(distinct, ids("late").into_iter().collect(), "all of them, and no others");
    assert!(seen.len() <= 61, "only what changed comes again: {}", seen.len());

    let to = wire::EntityQuery {
        last_modified_to: Some(middle.into()),
        page_size: Some(1000),
        ..Default::default()
    };
    assert_eq!(page(&client, &to).await.expect("a page").entities.len(), 60, "the early ones");
    let both = wire::EntityQuery {
        instance_id_starts_with: Some("@late@0".into()),
        last_modified_from: Some(middle.into()),
        ..Default::default()
    };
    assert_eq!(page(&client, &both).await.expect("a page").entities.len(), 10, "both conditions");

    // A token is of the list that gave it.
    let by_id = wire::EntityQuery { page_size: Some(7), ..Default::default() };
    let token = page(&client, &by_id).await.expect("a page").continuation_token;
    let mixed = wire::EntityQuery { continuation_token: token, ..to };
    let refused = page(&client, &mixed).await.expect_err("is refused");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("continuationToken"), "{refused}");

    let clean = wire::CleanEntityStorageRequest {
        remove_empty_entities: true,
        release_orphaned_locks: true,
        ..Default::default()
    };
    let cleaned = good("clean", client.rpc().clean_entity_storage(clean).await);
    assert_eq!(
        cleaned,
        wire::CleanEntityStorageResponse::default(),
        "R2.103: nothing is ever left"
    );
}
