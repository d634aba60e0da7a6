//! Load on a cluster, recorded: customers and tellers of a bank behind a load balancer, a worker on every node, a
//! register in every partition.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use durahub_cluster::placement::partition_of;
use tokio::task::JoinHandle;

use crate::nodes::{Cluster, PATIENCE};
use crate::record::calls::{Gateways, channel};
use crate::record::customers::{self, Pace};
use crate::record::ledger::{Ledger, REGISTER};
use crate::record::register::Registers;
use crate::record::{check, worker};

/// Number of the first task hub of a cluster.
const DEFAULT_HUB: u32 = 1;
/// Fewer calls than a busy machine can take: what is shown is not how much the cluster bears.
const PACE: Pace = Pace { customers: 6, open: 40, pause: 60, tellers: (2, 400) };
/// Readers of each register.
const READERS: usize = 3;
/// An orchestration of the load that takes longer was delayed.
const DELAYED: Duration = Duration::from_secs(5);

/// Load that runs until it is told to end.
pub(crate) struct Load {
    pub(crate) gateways: Arc<Gateways>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) registers: Registers,
    customers: JoinHandle<anyhow::Result<()>>,
    workers: Vec<(u64, JoinHandle<()>)>,
    begun: Instant,
}

impl Load {
    /// Begins the load on all nodes that run, and waits until it is answered.
    pub(crate) async fn begin(cluster: &Cluster) -> Load {
        let gateways = Arc::<Gateways>::default();
        for id in cluster.running() {
            gateways.add(id, channel(&cluster.node(id).grpc));
        }
        let ledger = Arc::new(Ledger::of_a_cluster());
        let registers = Registers::begin(&gateways, &one_per_partition(cluster, REGISTER), READERS);
        let random = fastrand::Rng::new();
        let load = customers::run(Arc::clone(&gateways), Arc::clone(&ledger), PACE, random);
        let mut load = Load {
            gateways,
            ledger,
            registers,
            customers: tokio::spawn(load),
            workers: Vec::new(),
            begun: Instant::now(),
        };
        for id in cluster.running() {
            load.add_worker(cluster, id);
        }
        load.progress(10).await;
        load
    }

    /// A worker at this node, from now on.
    pub(crate) fn add_worker(&mut self, cluster: &Cluster, id: u64) {
        let channel = channel(&cluster.node(id).grpc);
        let run = worker::run(channel, Arc::clone(&self.ledger), fastrand::Rng::new());
        self.workers.push((id, tokio::spawn(run)));
    }

    /// The load balancer sends calls to this node, too, and a worker connects to it.
    pub(crate) fn add_node(&mut self, cluster: &Cluster, id: u64) {
        self.gateways.add(id, channel(&cluster.node(id).grpc));
        self.add_worker(cluster, id);
    }

    /// The load balancer sends no more calls to this node, and its worker goes.
    pub(crate) fn remove_node(&mut self, id: u64) {
        self.gateways.remove(id);
        for (_, worker) in self.workers.extract_if(.., |(node, _)| *node == id) {
            worker.abort();
        }
    }

    /// Waits until so many more instances were started and acknowledged.
    pub(crate) async fn progress(&self, count: u64) {
        let before = self.ledger.acknowledged_starts();
        let progress = self.ledger.progress_beyond(before + count);
        tokio::time::timeout(PATIENCE, progress).await.expect("the cluster takes load");
    }

    /// Waits until every partition has taken a write that was acknowledged after `now`.
    pub(crate) async fn every_partition_serves(&self, now: Instant) {
        let until = Instant::now() + PATIENCE;
        for register in &self.registers.all {
            while register.last_acknowledged().is_none_or(|last| last <= now) {
                assert!(Instant::now() < until, "{} is never written again", register.id);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// The longest time since then during which a partition took no write.
    pub(crate) fn silence(&self, partition: usize, since: Instant) -> Duration {
        self.registers.all[partition - 1].longest_silence(since, Instant::now())
    }

    /// Waits until something of everything was done.
    async fn becomes_whole(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.ledger.summary();
            if now.purged > 0 && now.payments > 0 && now.transfers > 0 {
                return;
            }
            assert!(Instant::now() < until, "hardly any load: {now}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Median and 99th percentile of how long orchestrations took that were started in this time, and their number.
    pub(crate) fn latencies(&self, begun: Range<Instant>) -> String {
        let took = self.ledger.durations_of(begun);
        let [p50, p99] = [500, 990].map(|share| at(&took, share));
        format!("{p50:.2?} (p50), {p99:.2?} (p99) of {}", took.len())
    }

    /// Ends the load, waits until all work is done, and checks everything that was recorded.
    #[allow(clippy::print_stderr)] // figures of a run are worth a line
    pub(crate) async fn end(self, cluster: &Cluster, name: &str) -> Figures {
        self.becomes_whole().await;
        let lasted = self.begun.elapsed();
        let operations = self.registers.operations();
        let mut wrong = self.registers.end().await;
        self.ledger.end_load();
        let ended = tokio::time::timeout(PATIENCE, self.customers).await;
        ended.expect("the customers end").expect("no panic").expect("no error");
        let summary = self.ledger.summary();
        wrong.extend(check::everything(&self.gateways, &self.ledger, PATIENCE).await);
        for (_, worker) in self.workers {
            worker.abort();
        }
        wrong.extend(cluster.complaints());
        let durations = self.ledger.durations();
        let delayed = durations.iter().filter(|took| **took > DELAYED).count();
        let failed = self.ledger.failed_calls();
        eprintln!(
            "{name}: {} in {:.0} s, {operations} register operations; orchestrations took {:?} (p50), {:?} (p99), \
             {:?} at most; {delayed} of {} took over {DELAYED:?}; {} calls failed for their callers",
            summary,
            lasted.as_secs_f64(),
            at(&durations, 500),
            at(&durations, 990),
            durations.last().copied().unwrap_or_default(),
            durations.len(),
            failed.len(),
        );
        let shown: Vec<_> = wrong.iter().take(20).map(|wrong| format!("- {wrong}")).collect();
        assert!(wrong.is_empty(), "{name}: {} violations:\n{}", wrong.len(), shown.join("\n"));
        Figures { ended: durations.len(), delayed, failed }
    }
}

/// The duration that so many thousandths are below; shortest first.
fn at(durations: &[Duration], share: usize) -> Duration {
    durations.get(durations.len() * share / 1000).copied().unwrap_or_default()
}

/// What a run came to.
pub(crate) struct Figures {
    /// Orchestrations whose end was told.
    pub(crate) ended: usize,
    /// Those that took over five seconds.
    pub(crate) delayed: usize,
    /// Calls that failed although an SDK would have repeated them.
    pub(crate) failed: Vec<String>,
}

/// Ids that begin with `name`, one in each partition, in the order of partitions.
pub(crate) fn one_per_partition(cluster: &Cluster, name: &str) -> Vec<String> {
    let count = cluster.shape.partitions;
    let ids = (1..=count).map(|partition| {
        let mut ids = (0..).map(|n| format!("{name}-{n}"));
        ids.find(|id| partition_of(DEFAULT_HUB, id, count).0 == partition).expect("one")
    });
    ids.collect()
}
