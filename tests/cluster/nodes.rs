//! Nodes of a cluster as processes on loopback: start, kill -9, pause, terminate, ask.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use crate::links::Links;
use crate::support::server::http_get;
use crate::support::{Client, ports};

/// How long a start, a stop or a move may take: a debug build on two busy cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One cluster at a time: each of them wants the whole machine.
static ALONE: Mutex<()> = Mutex::const_new(());

/// What is special about a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Members that the cluster begins with.
    pub(crate) members: u64,
    pub(crate) partitions: u32,
    /// Whether ways between nodes can be cut.
    pub(crate) links: bool,
    /// Log entries between two compactions of a partition.
    pub(crate) snapshot_every: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { members: 3, partitions: 4, links: false, snapshot_every: 50_000 }
    }
}

/// One node.
pub(crate) struct Process {
    pub(crate) id: u64,
    pub(crate) grpc: String,
    http: String,
    /// Where it listens.
    pub(crate) peer: String,
    /// Where other nodes find it.
    reach: String,
    /// What the first start is told besides the usual.
    pub(crate) args: Vec<String>,
    child: Option<Child>,
}

/// A cluster; its processes die with it.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Process>,
    pub(crate) shape: Shape,
    pub(crate) links: Links,
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// The server under test: `DURAHUB_TEST_BINARY` names another one, a release build for example.
pub(crate) fn binary() -> std::ffi::OsString {
    let other = std::env::var_os("DURAHUB_TEST_BINARY");
    other.unwrap_or_else(|| env!("CARGO_BIN_EXE_durahub").into())
}

async fn process(id: u64, links: &Links, shape: Shape) -> Process {
    let [grpc, http, peer] = std::array::from_fn(|_| ports::free().to_string());
    let reach = if shape.links { links.open(id, peer.clone()).await } else { peer.clone() };
    Process { id, grpc, http, peer, reach, args: Vec::new(), child: None }
}

impl Cluster {
    /// Three nodes that form a cluster, started side by side.
    pub(crate) async fn start() -> Cluster {
        Cluster::start_as(Shape::default()).await
    }

    pub(crate) async fn start_as(shape: Shape) -> Cluster {
        let mut cluster = Cluster::prepare(shape).await;
        for id in 1..=shape.members {
            cluster.launch(id);
        }
        for id in 1..=shape.members {
            cluster.ready(id).await;
        }
        // Leaders move one by one, with a pause.
        let count = shape.members as usize;
        cluster.balanced_within(count, PATIENCE + Duration::from_secs(2) * shape.partitions).await;
        cluster
    }

    /// Folders and addresses of all members; nothing runs yet.
    pub(crate) async fn prepare(shape: Shape) -> Cluster {
        let alone = ALONE.lock().await;
        let folder =
            tempfile::Builder::new().prefix("durahub-cluster-").tempdir().expect("a folder");
        let links = Links::new();
        let mut nodes = Vec::new();
        for id in 1..=shape.members {
            nodes.push(process(id, &links, shape).await);
        }
        let list = nodes.iter().map(|node| format!("{}={}", node.id, node.reach));
        let list = list.collect::<Vec<_>>().join(",");
        for node in &mut nodes {
            let args = ["--node-id", &node.id.to_string(), "--initial-cluster", &list];
            node.args = args.map(str::to_owned).to_vec();
        }
        Cluster { nodes, shape, links, folder, _alone: alone }
    }

    /// A node that joins the cluster through another, and gets this id.
    pub(crate) async fn join(&mut self, id: u64) {
        let mut node = process(id, &self.links, self.shape).await;
        let through = self.nodes.iter().find(|node| node.child.is_some()).expect("a node runs");
        node.args = vec!["--join".to_owned(), through.reach.clone()];
        node.args.extend(["--advertise-peer".to_owned(), node.reach.clone()]);
        self.nodes.push(node);
        self.launch(id);
        self.ready(id).await;
    }

    pub(crate) fn node(&self, id: u64) -> &Process {
        self.nodes.iter().find(|node| node.id == id).expect("a known node")
    }

    fn node_mut(&mut self, id: u64) -> &mut Process {
        self.nodes.iter_mut().find(|node| node.id == id).expect("a known node")
    }

    fn log(&self, id: u64) -> PathBuf {
        self.folder.path().join(format!("node-{id}.log"))
    }

    pub(crate) fn data(&self, id: u64) -> PathBuf {
        self.folder.path().join(format!("data-{id}"))
    }

    pub(crate) fn launch(&mut self, id: u64) {
        let (log, data) = (self.log(id), self.data(id));
        let partitions = self.shape.partitions.to_string();
        let snapshot_every = self.shape.snapshot_every.to_string();
        let log = OpenOptions::new().create(true).append(true).open(log).expect("a log file");
        let node = self.node_mut(id);
        let child = Command::new(binary())
            .args(["serve", "--log-format", "json", "--partitions", &partitions])
            .args(["--snapshot-every", &snapshot_every])
            .args(["--grpc-addr", &node.grpc, "--http-addr", &node.http, "--peer-addr", &node.peer])
            .arg("--data-dir")
            .arg(data)
            .args(&node.args)
            .stdin(Stdio::null())
            .stdout(File::from(std::os::fd::OwnedFd::from(log.try_clone().expect("a handle"))))
            .stderr(log)
            .spawn();
        let child = child.expect("start a node");
        let pid = child.id();
        node.child = Some(child);
        self.links.runs(id, pid);
    }

    pub(crate) async fn ready(&mut self, id: u64) {
        let until = Instant::now() + PATIENCE;
        let http = self.node(id).http.parse().expect("an address");
        while !matches!(http_get(http, "/readyz").await, Ok((200, _))) {
            let child = self.node_mut(id).child.as_mut().expect("it runs");
            if let Some(status) = child.try_wait().expect("its status") {
                panic!("node {id} ended with {status}");
            }
            assert!(Instant::now() < until, "node {id} does not become ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn restart(&mut self, id: u64) {
        self.launch(id);
        self.ready(id).await;
    }

    /// Waits until a node has greeted another one.
    pub(crate) async fn greeted(&self, id: u64, other: u64) {
        let until = Instant::now() + PATIENCE;
        let linked = |line: &str| {
            line.contains("\"message\":\"linked\"") && line.contains(&format!("\"peer\":{other},"))
        };
        while !std::fs::read_to_string(self.log(id)).expect("its log").lines().any(linked) {
            assert!(Instant::now() < until, "node {id} does not reach node {other}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts a node that is expected to refuse; returns how it ended and what it wrote.
    pub(crate) async fn refused(&mut self, id: u64) -> (Option<i32>, String) {
        self.launch(id);
        let until = Instant::now() + PATIENCE;
        let status = loop {
            let child = self.node_mut(id).child.as_mut().expect("it runs");
            if let Some(status) = child.try_wait().expect("its status") {
                break status;
            }
            assert!(Instant::now() < until, "node {id} goes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        self.node_mut(id).child = None;
        (status.code(), std::fs::read_to_string(self.log(id)).expect("its log"))
    }

    pub(crate) fn kill9(&mut self, id: u64) {
        let mut child = self.node_mut(id).child.take().expect("it runs");
        child.kill().expect("kill it");
        child.wait().expect("reap it");
    }

    pub(crate) fn signal(&self, id: u64, name: &str) {
        let pid = self.pid(id);
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status();
        assert!(sent.expect("run a shell").success());
    }

    /// Asks a node to stop and waits until it has.
    pub(crate) async fn terminate(&mut self, id: u64) {
        self.signal(id, "TERM");
        self.ended(id).await;
    }

    /// Waits until a node that was asked to stop has stopped.
    pub(crate) async fn ended(&mut self, id: u64) {
        let until = Instant::now() + PATIENCE;
        let mut child = self.node_mut(id).child.take().expect("it runs");
        while child.try_wait().expect("its status").is_none() {
            assert!(Instant::now() < until, "node {id} does not stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn client(&self, id: u64) -> Client {
        Client::new(&self.node(id).grpc)
    }

    /// Nodes that run.
    pub(crate) fn running(&self) -> Vec<u64> {
        self.nodes.iter().filter(|node| node.child.is_some()).map(|node| node.id).collect()
    }

    pub(crate) fn pid(&self, id: u64) -> u32 {
        self.node(id).child.as_ref().expect("it runs").id()
    }

    /// How often a replica of this node caught up by a snapshot.
    pub(crate) fn snapshots(&self, id: u64) -> usize {
        let text = std::fs::read_to_string(self.log(id)).expect("its log");
        text.matches("caught up by a snapshot").count()
    }

    /// What the nodes wrote that no node should ever write, whatever happens around it; two leaders of one term
    /// are told of as well.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut leaders = BTreeMap::new();
        for node in &self.nodes {
            let text = std::fs::read_to_string(self.log(node.id)).unwrap_or_default();
            // openraft calls it an error that a leader which was asked for a change leads no more.
            let error = |line: &str| {
                line.contains("\"level\":\"ERROR\"") && !line.contains("\"target\":\"openraft")
            };
            let bad = text.lines().filter(|line| error(line) || line.contains("panicked at"));
            found.extend(bad.take(5).map(|line| format!("node {} wrote: {line}", node.id)));
            for (partition, term) in text.lines().filter_map(began_to_lead) {
                let first = *leaders.entry((partition, term)).or_insert(node.id);
                if first != node.id {
                    found.push(format!(
                        "nodes {first} and {} both led partition {partition} in term {term}",
                        node.id
                    ));
                }
            }
        }
        if leaders.is_empty() {
            found.push("no node wrote that it leads: the log is not what this check reads".into());
        }
        found
    }

    /// What a node tells Prometheus.
    pub(crate) async fn metrics(&self, id: u64) -> String {
        let at = self.node(id).http.parse().expect("an address");
        http_get(at, "/metrics").await.map_or(String::new(), |(_, text)| text)
    }

    /// What a node has logged so far.
    pub(crate) fn log_text(&self, id: u64) -> String {
        std::fs::read_to_string(self.log(id)).unwrap_or_default()
    }

    /// `durahub cluster ...`, asked through one node.
    pub(crate) fn operate(&self, through: u64, args: &[&str]) -> Output {
        let endpoint = format!("http://{}", self.node(through).peer);
        let mut command = Command::new(binary());
        command.arg("cluster").args(args).args(["--endpoint", &endpoint]);
        command.output().expect("run the command line")
    }

    pub(crate) fn status(&self, through: u64) -> Value {
        let output = self.operate(through, &["status", "--output", "json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    pub(crate) fn leader(&self, through: u64, partition: usize) -> Option<u64> {
        self.status(through)["partitions"][partition]["leader"].as_u64()
    }

    /// Waits until the cluster no longer lists a node.
    pub(crate) async fn gone(&self, through: u64, id: u64) {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status(through);
            if !status["nodes"].as_array().expect("nodes").iter().any(|node| node["node"] == id) {
                return;
            }
            assert!(Instant::now() < until, "node {id} is not removed: {status:#}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Lets a node found a cluster of its own in its folder, and stops it.
    pub(crate) async fn found_alone(&mut self, id: u64) {
        let alone = ["--node-id".to_owned(), id.to_string()].to_vec();
        let args = std::mem::replace(&mut self.node_mut(id).args, alone);
        self.restart(id).await;
        self.terminate(id).await;
        self.node_mut(id).args = args;
    }

    /// Waits until so many nodes share leaders and partitions.
    pub(crate) async fn balanced(&self, count: usize) -> Value {
        self.balanced_within(count, PATIENCE).await
    }

    async fn balanced_within(&self, count: usize, patience: Duration) -> Value {
        let through = self.running()[0];
        let until = Instant::now() + patience;
        loop {
            let status = self.status(through);
            let nodes = status["nodes"].as_array().expect("nodes");
            let most = (self.shape.partitions as usize + 1).div_ceil(count) as u64;
            let even = nodes.len() == count
                && nodes.iter().all(|node| node["reachable"] == true)
                && nodes.iter().all(|node| node["leads"].as_u64().is_some_and(|n| n <= most));
            let whole = status["partitions"].as_array().expect("partitions").iter().all(|group| {
                let replicas = group["replicas"].as_array().expect("replicas");
                let voters = replicas.iter().filter(|replica| replica["voter"] == true).count();
                // The metadata are everywhere, a partition is where its votes are.
                let copies = if group["partition"] == 0 { count } else { count.min(3) };
                group["leader"].is_u64() && voters == count.min(3) && replicas.len() == copies
            });
            // Evenly, and nothing is left over.
            let held: Vec<u64> =
                nodes.iter().map(|node| node["holds"].as_u64().expect("a number")).collect();
            let copies = self.shape.partitions as usize * count.min(3) + count;
            let spread = held.iter().max().zip(held.iter().min()).map(|(most, least)| most - least);
            let whole = whole && held.iter().sum::<u64>() == copies as u64 && spread <= Some(1);
            if even && whole {
                return status;
            }
            assert!(Instant::now() < until, "not balanced: {status:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Partition and term, if this is the line of a node that begins to lead.
fn began_to_lead(line: &str) -> Option<(u64, u64)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    (fields.get("message")? == "leading").then_some(())?;
    Some((fields.get("partition")?.as_u64()?, fields.get("term")?.as_u64()?))
}

impl Drop for Cluster {
    #[allow(clippy::print_stderr)] // what the nodes said is all there is to find out why
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("data folders and logs are kept in {}", self.folder.path().display());
            for node in &self.nodes {
                let text = std::fs::read_to_string(self.log(node.id)).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                eprintln!("--- end of the log of node {} ---", node.id);
                for line in &lines[lines.len().saturating_sub(40)..] {
                    eprintln!("{line}");
                }
            }
        }
    }
}
