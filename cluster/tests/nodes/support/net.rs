//! Nodes of one process that talk over TCP, with a proxy on every way from one to another.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use durahub_cluster::admin::Open;
use durahub_cluster::admin::messages::StatusResponse;
use durahub_cluster::transport::{AddressBook, GrpcTransport, PeerServer, Places, Plain};
use durahub_cluster::{GroupId, Leadership, Node, NodeConfig, StartError, Storage};
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
    pub(crate) machine: Arc<Counters>,
    server: PeerServer,
}

/// A cluster over TCP.
pub(crate) struct Net {
    pub(crate) ways: BTreeMap<(u64, u64), Way>,
    pub(crate) nodes: BTreeMap<u64, Running>,
    pub(crate) dir: Option<tempfile::TempDir>,
    pub(crate) change: fn(&mut NodeConfig),
    ports: BTreeMap<u64, SocketAddr>,
    books: BTreeMap<u64, AddressBook>,
    /// What nodes were told when the cluster did not want them.
    pub(crate) expelled: Arc<Mutex<Vec<String>>>,
}

impl Net {
    pub(crate) async fn start(on_disk: bool, change: fn(&mut NodeConfig)) -> Self {
        let dir = on_disk.then(|| tempfile::tempdir().unwrap());
        let mut net = Self {
            ways: BTreeMap::new(),
            nodes: BTreeMap::new(),
            dir,
            change,
            ports: BTreeMap::new(),
            books: BTreeMap::new(),
            expelled: Arc::default(),
        };
        for id in 1..=3 {
            net.start_node(id).await;
        }
        net.balanced().await;
        net
    }

    /// Opens the ways of a node that is new.
    async fn pave(&mut self, id: u64) {
        let mut ids: Vec<u64> = self.ways.keys().map(|(from, _)| *from).collect();
        ids.push(id);
        ids.dedup();
        for other in ids {
            for pair in [(other, id), (id, other)] {
                if !self.ways.contains_key(&pair) {
                    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
                    let port = self.ports.get(&pair.1).copied().unwrap_or(nowhere);
                    self.ways.insert(pair, Way::open(port).await);
                }
            }
        }
    }

    pub(crate) fn storage(&self, id: u64) -> Storage {
        self.dir
            .as_ref()
            .map_or(Storage::Memory, |dir| Storage::Folder(dir.path().join(id.to_string())))
    }

    /// Starts a node on a new port, as a pod with a new address would.
    pub(crate) async fn start_node(&mut self, id: u64) {
        self.try_start_node(id, |_| {}).await.unwrap();
    }

    pub(crate) async fn join_node(&mut self, id: u64) {
        let at = self.ports[self.nodes.keys().next().unwrap()].to_string();
        let join = move |config: &mut NodeConfig| {
            config.node_id = 0;
            config.options.initial_members.clear();
            config.options.join = vec![at];
        };
        self.try_start_node(id, join).await.unwrap();
    }

    pub(crate) async fn try_start_node(
        &mut self,
        id: u64,
        adjust: impl FnOnce(&mut NodeConfig),
    ) -> Result<(), StartError> {
        self.pave(id).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.ports.insert(id, address);
        for ((_, to), way) in &self.ways {
            if *to == id {
                *way.target.lock() = address;
            }
        }
        let mut config = config(self.storage(id), 2);
        config.node_id = id;
        // The list is the same on every node; where a node really finds another is in its book.
        let member = |id: u64| (id, format!("node-{id}.invalid:1"));
        config.options.initial_members = (1..=3).map(member).collect();
        config.options.peer_address = member(id).1;
        let expelled = Arc::clone(&self.expelled);
        let told = move |reason: &str| expelled.lock().push(format!("{id}: {reason}"));
        config.options.expelled = Arc::new(told.clone());
        let transport = GrpcTransport::new(Arc::new(Plain), told);
        let book = durahub_cluster::peers::Transport::addresses(&transport).unwrap();
        for ((from, to), way) in &self.ways {
            if *from == id {
                book.pin(*to, way.address.to_string());
            }
        }
        self.books.insert(id, book);
        for (from, book) in &self.books {
            book.pin(id, self.ways[&(*from, id)].address.to_string());
        }
        config.options.transport = Arc::new(transport);
        (self.change)(&mut config);
        adjust(&mut config);
        let machine = Arc::new(Counters::default());
        let node = Node::start(config, Arc::clone(&machine)).await?;
        assert_eq!(node.identity().node, id);
        let server = PeerServer::start(
            listener,
            Arc::new(Plain),
            node.service(),
            node.admin(),
            Arc::new(Open),
            Places::default(),
        );
        self.nodes.insert(id, Running { node, machine, server });
        Ok(())
    }

    /// Where the nodes really listen.
    pub(crate) fn addresses(&self) -> BTreeMap<u64, String> {
        self.ports.iter().map(|(id, port)| (*id, port.to_string())).collect()
    }

    /// Waits until leaders and copies are where they should be.
    pub(crate) async fn balanced(&self) -> StatusResponse {
        let mut status = StatusResponse::default();
        for _ in 0..600 {
            let Some(running) = self.nodes.values().next() else { break };
            status = running.node.admin().status().await.unwrap();
            let nodes = status.nodes.len() as u32;
            let leads = status.nodes.iter().map(|node| node.leads);
            let groups = status.groups.len() as u32;
            let even = leads.clone().all(|leads| leads * nodes < groups + nodes)
                && leads.sum::<u32>() == groups;
            let voters = (nodes as usize).min(3);
            let whole = status.groups.iter().all(|group| {
                let votes = group.replicas.iter().filter(|replica| replica.voter);
                let votes: Vec<u64> = votes.map(|replica| replica.node).collect();
                // The metadata are everywhere, a partition is where its votes are, and nothing is left over.
                let copies = if group.group == 0 { nodes as usize } else { voters };
                let held = self.nodes.iter().filter(|(id, running)| {
                    let is_here = running.node.group(GroupId(group.group)).is_here();
                    is_here == (group.group == 0 || votes.contains(*id))
                });
                votes.len() == voters
                    && group.replicas.len() == copies
                    && held.count() == self.nodes.len()
            });
            let votes = status.nodes.iter().map(|node| {
                let votes = |group: &&durahub_proto::peer::GroupStatus| {
                    let mut replicas = group.replicas.iter();
                    group.group > 0 && replicas.any(|it| it.voter && it.node == node.node)
                };
                status.groups.iter().filter(votes).count()
            });
            let spread = votes.clone().max().unwrap_or(0) - votes.min().unwrap_or(0);
            let whole = whole && spread <= 1;
            let known = status.nodes.len() == self.nodes.len();
            if even && whole && known && status.nodes.iter().all(|node| node.reachable) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the cluster is not balanced: {status:#?}");
    }

    pub(crate) async fn stop_node(&mut self, id: u64) {
        let running = self.nodes.remove(&id).unwrap();
        running.server.stop().await;
        running.node.stop().await;
        self.books.remove(&id);
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
