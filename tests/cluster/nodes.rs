//! Nodes of a cluster as processes on loopback: start, kill -9, pause, terminate, ask.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::server::http_get;
use crate::support::{Client, Program, WorkerOptions, program::Running};

/// How long a start, a stop or a move may take: a debug build on two busy cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One node.
pub(crate) struct Process {
    pub(crate) id: u64,
    grpc: String,
    http: String,
    pub(crate) peer: String,
    /// What the first start is told besides the usual.
    args: Vec<String>,
    child: Option<Child>,
}

/// A cluster; its processes die with it.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Process>,
    folder: tempfile::TempDir,
}

fn free_ports<const N: usize>() -> [String; N] {
    // Bound together, so that they differ, and let go of before the server binds them.
    let held: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|port| port.local_addr().expect("an address").to_string())
}

impl Cluster {
    /// Three nodes that form a cluster, started side by side.
    pub(crate) async fn start() -> Cluster {
        let folder =
            tempfile::Builder::new().prefix("durahub-cluster-").tempdir().expect("a folder");
        let ports: [String; 9] = free_ports();
        let list = (1..=3).map(|id| format!("{id}={}", ports[3 * id - 1]));
        let list = list.collect::<Vec<_>>().join(",");
        let nodes = (1..=3_usize).map(|id| {
            let args = ["--node-id", &id.to_string(), "--initial-cluster", &list];
            Process {
                id: id as u64,
                grpc: ports[3 * id - 3].clone(),
                http: ports[3 * id - 2].clone(),
                peer: ports[3 * id - 1].clone(),
                args: args.map(str::to_owned).to_vec(),
                child: None,
            }
        });
        let mut cluster = Cluster { nodes: nodes.collect(), folder };
        for id in 1..=3 {
            cluster.launch(id);
        }
        for id in 1..=3 {
            cluster.ready(id).await;
        }
        cluster.balanced(3).await;
        cluster
    }

    /// A node that joins the cluster through another.
    pub(crate) async fn join(&mut self, id: u64) {
        let [grpc, http, peer] = free_ports();
        let through = self.nodes.iter().find(|node| node.child.is_some()).expect("a node runs");
        let args = vec!["--join".to_owned(), through.peer.clone()];
        self.nodes.push(Process { id, grpc, http, peer, args, child: None });
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

    fn launch(&mut self, id: u64) {
        let (log, data) = (self.log(id), self.data(id));
        let log = OpenOptions::new().create(true).append(true).open(log).expect("a log file");
        let node = self.node_mut(id);
        let child = Command::new(env!("CARGO_BIN_EXE_durahub"))
            .args(["serve", "--log-format", "json", "--partitions", "4"])
            .args(["--grpc-addr", &node.grpc, "--http-addr", &node.http, "--peer-addr", &node.peer])
            .arg("--data-dir")
            .arg(data)
            .args(&node.args)
            .stdin(Stdio::null())
            .stdout(File::from(std::os::fd::OwnedFd::from(log.try_clone().expect("a handle"))))
            .stderr(log)
            .spawn();
        node.child = Some(child.expect("start a node"));
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
        let pid = self.node(id).child.as_ref().expect("it runs").id();
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

    pub(crate) fn work(&self, id: u64, program: &Program) -> Running {
        program.run(&self.client(id), WorkerOptions::default())
    }

    /// `durahub cluster ...`, asked through one node.
    pub(crate) fn operate(&self, through: u64, args: &[&str]) -> Output {
        let endpoint = format!("http://{}", self.node(through).peer);
        let mut command = Command::new(env!("CARGO_BIN_EXE_durahub"));
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

    /// Waits until so many nodes share leaders and votes.
    pub(crate) async fn balanced(&self, count: usize) -> Value {
        let through = self.nodes.iter().find(|node| node.child.is_some()).expect("a node runs").id;
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status(through);
            let nodes = status["nodes"].as_array().expect("nodes");
            let most = 5_usize.div_ceil(count) as u64;
            let even = nodes.len() == count
                && nodes.iter().all(|node| node["reachable"] == true)
                && nodes.iter().all(|node| node["leads"].as_u64().is_some_and(|n| n <= most));
            let whole = status["partitions"].as_array().expect("partitions").iter().all(|group| {
                let replicas = group["replicas"].as_array().expect("replicas");
                let voters = replicas.iter().filter(|replica| replica["voter"] == true).count();
                group["leader"].is_u64() && voters == 3 && replicas.len() == count
            });
            if even && whole {
                return status;
            }
            assert!(Instant::now() < until, "not balanced: {status:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
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
