//! Nodes of one process that talk over TCP, with a proxy on every way from one to another.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use durahub_cluster::transport::{GrpcTransport, PeerServer, Plain};
use durahub_cluster::{GroupId, Leadership, Node, NodeConfig, Storage};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::{Counters, config, rows};

/// A way from one node to another that can be cut.
pub(crate) struct Way {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    cut: Arc<(AtomicBool, Notify)>,
}

impl Way {
    async fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = Arc::new((AtomicBool::new(false), Notify::new()));
        let target = Arc::new(Mutex::new(target));
        let way = Self { address, target: Arc::clone(&target), cut: Arc::clone(&cut) };
        tokio::spawn(async move {
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                let (cut, target) = (Arc::clone(&cut), *target.lock());
                tokio::spawn(async move {
                    let was_cut = cut.1.notified();
                    if cut.0.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(mut to) = TcpStream::connect(target).await else { return };
                    let _ = (from.set_nodelay(true), to.set_nodelay(true));
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        () = was_cut => {}
                    }
                });
            }
        });
        way
    }

    fn set_cut(&self, cut: bool) {
        self.cut.0.store(cut, Ordering::SeqCst);
        self.cut.1.notify_waiters();
    }
}

pub(crate) struct Running {
    pub(crate) node: Node<Counters>,
    server: PeerServer,
}

/// A cluster over TCP.
pub(crate) struct Net {
    pub(crate) ways: BTreeMap<(u64, u64), Way>,
    pub(crate) nodes: BTreeMap<u64, Running>,
    pub(crate) dir: Option<tempfile::TempDir>,
    pub(crate) change: fn(&mut NodeConfig),
}

impl Net {
    pub(crate) async fn start(on_disk: bool, change: fn(&mut NodeConfig)) -> Self {
        let dir = on_disk.then(|| tempfile::tempdir().unwrap());
        let mut net = Self { ways: BTreeMap::new(), nodes: BTreeMap::new(), dir, change };
        for from in 1..=3 {
            for to in 1..=3 {
                let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
                net.ways.insert((from, to), Way::open(nowhere).await);
            }
        }
        for id in 1..=3 {
            net.start_node(id).await;
        }
        net
    }

    /// Starts a node on a new port, as a pod with a new address would.
    pub(crate) async fn start_node(&mut self, id: u64) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for ((_, to), way) in &self.ways {
            if *to == id {
                *way.target.lock() = address;
            }
        }
        let storage = self
            .dir
            .as_ref()
            .map_or(Storage::Memory, |dir| Storage::Folder(dir.path().join(id.to_string())));
        let mut config = config(storage, 2);
        config.node_id = id;
        // The list is the same on every node; where a node really finds another is in its book.
        config.options.initial_members = (1..=3).map(|id| (id, format!("node-{id}:1"))).collect();
        let transport = GrpcTransport::new(Arc::new(Plain), |reason| panic!("{reason}"));
        let book = durahub_cluster::peers::Transport::addresses(&transport).unwrap();
        let ways = self.ways.iter().filter(|((from, _), _)| *from == id);
        book.replace(ways.map(|((_, to), way)| (*to, way.address.to_string())));
        config.options.transport = Arc::new(transport);
        (self.change)(&mut config);
        let node = Node::start(config, Arc::new(Counters::default())).await.unwrap();
        let server = PeerServer::start(listener, Arc::new(Plain), node.service());
        self.nodes.insert(id, Running { node, server });
    }

    pub(crate) async fn stop_node(&mut self, id: u64) {
        let running = self.nodes.remove(&id).unwrap();
        running.server.stop().await;
        running.node.stop().await;
    }

    pub(crate) async fn stop(mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop_node(id).await;
        }
    }

    /// Cuts every way of a node, both directions, or heals them.
    pub(crate) fn isolate(&self, id: u64, cut: bool) {
        for ((from, to), way) in &self.ways {
            if *from == id || *to == id {
                way.set_cut(cut);
            }
        }
    }

    pub(crate) fn cut(&self, from: u64, to: u64, cut: bool) {
        self.ways[&(from, to)].set_cut(cut);
    }

    pub(crate) fn group(&self, id: u64, group: GroupId) -> &durahub_cluster::Partition<Counters> {
        self.nodes[&id].node.group(group)
    }

    pub(crate) async fn leader(&self, group: GroupId, except: Option<u64>) -> u64 {
        for _ in 0..1000 {
            for (id, running) in &self.nodes {
                let leadership = running.node.group(group).leadership();
                let leads = matches!(*leadership.borrow(), Leadership::Leader { .. });
                if leads && Some(*id) != except {
                    return *id;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("group {group} has no leader");
    }

    /// Waits until all nodes hold the same rows; returns their number.
    pub(crate) async fn converge(&self, group: GroupId) -> usize {
        let mut found = Vec::new();
        for _ in 0..1000 {
            found = self.nodes.values().map(|running| rows(running.node.group(group))).collect();
            if found.windows(2).all(|pair| pair[0] == pair[1]) && !found[0].is_empty() {
                return found[0].len();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nodes differ: {:?}", found.iter().map(BTreeMap::len).collect::<Vec<_>>());
    }
}
