//! Load on a cluster: clients on every node start orchestrations, workers on every node run them.
//!
//! A client does what an SDK's retry does: it repeats a call that was refused as `UNAVAILABLE`, and one whose
//! outcome it does not know, under the same instance id. An instance counts as acknowledged when the server said
//! so, or said that it exists already.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use durahub_proto::wire;
use tokio::task::JoinHandle;
use tonic::Code;
use wire::OrchestrationStatus;

use crate::nodes::{Cluster, PATIENCE};
use crate::support::actions::{complete, schedule_task};
use crate::support::program::Running;
use crate::support::{Client, Program};

/// The program: one activity, whose result is the output.
pub(crate) fn program() -> Program {
    Program::new()
        .orchestrator("Greet", |history| match history.result(1) {
            None => vec![schedule_task(1, "Hello", history.input())],
            Some(result) => vec![complete(2, &result.expect("Hello never fails"))],
        })
        .activity("Hello", |name| Ok(format!("hello {name}")))
}

/// Clients that start instances until they are told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<String>>>,
    /// Milliseconds that the slowest call took, its repetitions included.
    pub(crate) slowest: Arc<AtomicU64>,
    _workers: Vec<Running>,
}

impl Load {
    /// Begins the load through these nodes.
    pub(crate) fn begin(cluster: &Cluster, through: &[u64]) -> Load {
        let (stop, slowest) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default());
        let workers = cluster.nodes.iter().map(|node| cluster.work(node.id, &program())).collect();
        let clients = through.iter().map(|id| {
            let (client, id) = (cluster.client(*id), *id);
            tokio::spawn(start_many(client, id, Arc::clone(&stop), Arc::clone(&slowest)))
        });
        Load {
            stop: Arc::clone(&stop),
            clients: clients.collect(),
            slowest: Arc::clone(&slowest),
            _workers: workers,
        }
    }

    pub(crate) fn add_worker(&mut self, cluster: &Cluster, id: u64) {
        self._workers.push(cluster.work(id, &program()));
    }

    /// Ends the load and checks that everything that was acknowledged completes, as seen through `node`.
    pub(crate) async fn end(self, cluster: &Cluster, node: u64) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let mut acknowledged = Vec::new();
        for client in self.clients {
            acknowledged.extend(client.await.expect("a client"));
        }
        let client = cluster.client(node);
        let until = Instant::now() + PATIENCE;
        for id in &acknowledged {
            loop {
                let request = wire::GetInstanceRequest {
                    instance_id: id.clone(),
                    get_inputs_and_outputs: true,
                };
                let answer = client.rpc().get_instance(request).await;
                let state = match answer.map(tonic::Response::into_inner) {
                    Ok(answer) => {
                        assert!(answer.exists, "{id} was acknowledged and is lost");
                        answer.orchestration_state.expect("a state")
                    }
                    Err(status) => {
                        assert!(Instant::now() < until, "{id}: {status}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                if state.orchestration_status() == OrchestrationStatus::Completed {
                    let output = state.output.map(|output| output.as_str().to_owned());
                    assert_eq!(output, Some(format!("hello {id}")), "{id}");
                    break;
                }
                assert!(Instant::now() < until, "{id} is still {:?}", state.orchestration_status());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        acknowledged.len()
    }
}

async fn start_many(
    client: Client,
    node: u64,
    stop: Arc<AtomicBool>,
    slowest: Arc<AtomicU64>,
) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let id = format!("i{node}-{n}");
        let begun = Instant::now();
        loop {
            let request = wire::CreateInstanceRequest {
                instance_id: id.clone(),
                name: "Greet".into(),
                input: Some(id.as_str().into()),
                ..Default::default()
            };
            match client.rpc().start_instance(request).await {
                Ok(_) => break,
                // An earlier attempt got through.
                Err(status) if status.code() == Code::AlreadyExists => break,
                Err(status) => {
                    assert!(begun.elapsed() < PATIENCE, "start {id} through node {node}: {status}")
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
        acknowledged.push(id);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    acknowledged
}
