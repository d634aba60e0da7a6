//! Proxies on the ways between nodes, so that a way can be cut in one direction.
//!
//! The nodes know each other by the addresses of proxies, one per node. Who has connected to a proxy is found
//! out from the kernel: the socket at the other end belongs to the process of some node. A way that is cut
//! delivers nothing and tells nobody, as when a network drops packets: what was sent waits, like what TCP sends
//! again and again, and is delivered when the way heals, if the connection is still there. A new connection
//! needs both directions. Operators and tests are no nodes; they are let through.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// All ways between nodes.
#[derive(Clone)]
pub(crate) struct Links(Arc<Shared>);

struct Shared {
    /// Ways that deliver nothing, from one node to another.
    cut: watch::Sender<BTreeSet<(u64, u64)>>,
    /// Processes of nodes.
    pids: RwLock<BTreeMap<u32, u64>>,
}

impl Links {
    pub(crate) fn new() -> Links {
        Links(Arc::new(Shared {
            cut: watch::Sender::new(BTreeSet::new()),
            pids: RwLock::default(),
        }))
    }

    /// Opens the proxy of a node that listens at `target`; returns the proxy's address.
    pub(crate) async fn open(&self, node: u64, target: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let links = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, peer) = listener.accept().await.expect("a connection");
                tokio::spawn(links.clone().connect(stream, peer, address, node, target.clone()));
            }
        });
        address.to_string()
    }

    /// A node runs in this process now.
    pub(crate) fn runs(&self, node: u64, pid: u32) {
        let mut pids = self.0.pids.write();
        pids.retain(|_, known| *known != node);
        pids.insert(pid, node);
    }

    /// Cuts these ways, and heals all others.
    pub(crate) fn cut(&self, ways: impl IntoIterator<Item = (u64, u64)>) {
        self.0.cut.send_replace(ways.into_iter().collect());
    }

    pub(crate) fn heal(&self) {
        self.cut([]);
    }

    async fn delivers(&self, from: u64, to: u64) {
        let mut cut = self.0.cut.subscribe();
        let open = cut.wait_for(|cut| !cut.contains(&(from, to))).await;
        open.expect("the links are there");
    }

    async fn connect(
        self,
        client: TcpStream,
        peer: SocketAddr,
        proxy: SocketAddr,
        node: u64,
        target: String,
    ) {
        let from = self.owner(peer, proxy).unwrap_or(0);
        self.delivers(from, node).await;
        self.delivers(node, from).await;
        let Ok(server) = TcpStream::connect(target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            self.carry(from_client, to_server, from, node),
            self.carry(from_server, to_client, node, from),
        );
    }

    async fn carry(&self, mut read: OwnedReadHalf, mut write: OwnedWriteHalf, from: u64, to: u64) {
        let mut bytes = vec![0; 64 << 10];
        loop {
            // A connection that breaks is one that ends: neither is heard of where nothing arrives.
            let count = read.read(&mut bytes).await.unwrap_or(0);
            self.delivers(from, to).await;
            if count == 0 || write.write_all(&bytes[..count]).await.is_err() {
                let _ = write.shutdown().await;
                return;
            }
        }
    }

    /// The node whose process holds the other end of a connection.
    fn owner(&self, peer: SocketAddr, proxy: SocketAddr) -> Option<u64> {
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        let mark = |address: SocketAddr| format!(":{:04X}", address.port());
        let inode = sockets.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let found = words.get(1)?.ends_with(&mark(peer)) && words[2].ends_with(&mark(proxy));
            found.then(|| words[9].to_owned())
        })?;
        let wanted = format!("socket:[{inode}]");
        let pids = self.0.pids.read().clone();
        pids.into_iter().find_map(|(pid, node)| {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
            let holds = files
                .flatten()
                .filter_map(|file| std::fs::read_link(file.path()).ok())
                .any(|file| file.to_string_lossy() == wanted);
            holds.then_some(node)
        })
    }
}
