//! Many finished instances: pages, and a purge of all of them while new work goes on.
//!
//! `DURAHUB_SCALE_INSTANCES` is how many (default 5,000). The times are told, not judged: what a page reads is
//! counted in `src/engine/read/list/tests.rs`.

use std::time::{Duration, Instant};

use durahub_proto::wire;
use futures::StreamExt as _;

use crate::lists::program;
use crate::support::client::good;
use crate::support::{TestServer, WorkerOptions};

const PAGES: usize = 50;

/// R8.1: pages and purges are right among thousands of leftovers.
#[tokio::test(flavor = "multi_thread")]
async fn pages_and_a_purge_among_many_instances() {
    let setting = std::env::var("DURAHUB_SCALE_INSTANCES").ok();
    let many: usize = setting.map_or(5_000, |text| text.parse().expect("a number"));
    let server = TestServer::start().await;
    let client = server.client();

    let began = Instant::now();
    let batches: Vec<_> = (0..many).collect::<Vec<_>>().chunks(500).map(<[_]>::to_vec).collect();
    let make = |batch: Vec<usize>| {
        let client = client.clone();
        async move {
            let ids: Vec<_> = batch.iter().map(|n| format!("old-{n:06}")).collect();
            for id in &ids {
                client.start(id, "Old", "an input of some bytes").await;
            }
            let request = wire::SkipGracefulOrchestrationTerminationsRequest {
                instance_batch: Some(wire::InstanceBatch { instance_ids: ids }),
                reason: Some("an output".into()),
            };
            let ended = client.rpc().skip_graceful_orchestration_terminations(request).await;
            assert!(good("end them", ended).unterminated_instance_ids.is_empty());
        }
    };
    futures::stream::iter(batches).for_each_concurrent(64, make).await;
    println!("{many} instances started and ended in {:?}", began.elapsed());

    for (what, fetch, prefix) in
        [("plain", false, None), ("whole", true, None), ("by prefix", false, Some("old-"))]
    {
        let (mut times, mut token) = (Vec::new(), None);
        for _ in 0..PAGES {
            let query = wire::InstanceQuery {
                max_instance_count: 100,
                continuation_token: token,
                fetch_inputs_and_outputs: fetch,
                instance_id_prefix: prefix.map(Into::into),
                ..Default::default()
            };
            let asked = Instant::now();
            let request = wire::QueryInstancesRequest { query: Some(query) };
            let page = good("query", client.rpc().query_instances(request).await);
            times.push(asked.elapsed());
            assert_eq!(page.orchestration_state.len(), 100);
            token = page.continuation_token;
        }
        times.sort();
        println!(
            "pages of 100, {what}: p50 {:?}, slowest {:?}",
            times[PAGES / 2],
            times[PAGES - 1]
        );
    }

    // New work, before and while all the old goes.
    let worker = program().run(&client, WorkerOptions::default().serving(&["End"], &[]));
    let work = async |name: &str, during: Duration| {
        let (until, mut times) = (Instant::now() + during, Vec::new());
        while Instant::now() < until || times.len() < 20 {
            let asked = Instant::now();
            let id = client.start("", "End", "new").await;
            assert_eq!(client.output(&id).await, "new");
            times.push(asked.elapsed());
        }
        times.sort();
        let (count, p50) = (times.len(), times[times.len() / 2]);
        println!("new work {name}: {count} instances, p50 {p50:?}, slowest {:?}", times[count - 1]);
        count
    };
    work("alone", Duration::from_secs(1)).await;
    let purging = tokio::spawn({
        let client = client.clone();
        async move {
            let began = Instant::now();
            let filter = wire::PurgeInstanceFilter {
                runtime_status: vec![wire::OrchestrationStatus::Terminated as i32],
                ..Default::default()
            };
            let request = wire::PurgeInstancesRequest {
                request: Some(wire::purge_instances_request::Request::PurgeInstanceFilter(filter)),
                ..Default::default()
            };
            let answer = good("purge", client.rpc().purge_instances(request).await);
            println!("{} instances purged in {:?}", answer.deleted_instance_count, began.elapsed());
            answer
        }
    });
    let done = work("while the old goes", Duration::from_secs(1)).await;
    let answer = purging.await.expect("no panic");
    assert_eq!(answer.deleted_instance_count as usize, many, "each once");
    assert_eq!(answer.is_complete, Some(true));
    assert!(done >= 20, "new work went on");
    let query = wire::InstanceQuery {
        runtime_status: vec![wire::OrchestrationStatus::Terminated as i32],
        ..Default::default()
    };
    let request = wire::QueryInstancesRequest { query: Some(query) };
    let left = good("query", client.rpc().query_instances(request).await);
    assert!(left.orchestration_state.is_empty() && left.continuation_token.is_none());
    drop(worker);
}
