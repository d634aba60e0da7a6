//! The programs of three nodes talk over TCP: questions and feeds, in order, at any length, until a link breaks.

use std::sync::Arc;
use std::time::Duration;

use crate::support::net::Net;
use bytes::Bytes;
use durahub_cluster::{Feed, Peers, Program};
use futures::future::BoxFuture;
use tokio::sync::mpsc;

/// Answers every question with itself and the node's number, and every item of a feed with itself.
struct Echo {
    node: u64,
    accepted: mpsc::UnboundedSender<(u64, u64)>,
}

impl Program for Echo {
    fn answer(&self, question: Bytes) -> BoxFuture<'_, Result<Bytes, String>> {
        let node = self.node;
        Box::pin(async move {
            match &question[..] {
                b"fail" => Err("it fails".to_owned()),
                text => Ok(Bytes::from(format!("{} by {node}", String::from_utf8_lossy(text)))),
            }
        })
    }

    fn accept(&self, from: u64, mut feed: Feed) {
        self.accepted.send((self.node, from)).unwrap();
        tokio::spawn(async move {
            while let Some(item) = feed.receiver.recv().await {
                if item == "end" || feed.sender.send(item).is_err() {
                    return;
                }
            }
        });
    }
}

async fn members(peers: &Peers) {
    let mut members = peers.members();
    let both = members.wait_for(|members| members.len() == 2);
    tokio::time::timeout(Duration::from_secs(60), both).await.unwrap().unwrap();
}

async fn next(feed: &mut Feed) -> Option<Bytes> {
    tokio::time::timeout(Duration::from_secs(30), feed.receiver.recv()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn programs_ask_and_feed_each_other() {
    let net = Net::start(false, |_| ()).await;
    let (accepted, mut feeds) = mpsc::unbounded_channel();
    let peers = net.nodes[&1].node.peers();
    members(&peers).await;
    let second = Duration::from_secs(10);
    let refused = peers.ask(2, Bytes::from_static(b"early"), second).await.unwrap_err();
    assert!(refused.to_string().contains("it has not started yet"), "{refused}");
    let mut early = peers.feed(2).await.unwrap();
    assert_eq!(next(&mut early).await, None, "nobody there takes a feed");
    for node in 1..=3 {
        net.nodes[&node].node.serve(Arc::new(Echo { node, accepted: accepted.clone() }));
    }
    assert_eq!(peers.ask(2, Bytes::from_static(b"hello"), second).await.unwrap(), "hello by 2");
    assert_eq!(peers.ask(3, Bytes::from_static(b"hello"), second).await.unwrap(), "hello by 3");
    let failed = peers.ask(3, Bytes::from_static(b"fail"), second).await.unwrap_err();
    assert!(failed.to_string().contains("it fails"), "{failed}");

    let mut feed = peers.feed(2).await.unwrap();
    let lengths = [1, 0, 5 << 20, 3, 256 << 10, (256 << 10) + 1, 40, 3 << 20, 7];
    for (n, length) in lengths.into_iter().enumerate() {
        feed.sender.send(Bytes::from(vec![n as u8; length])).unwrap();
    }
    for (n, length) in lengths.into_iter().enumerate() {
        assert_eq!(next(&mut feed).await.unwrap(), vec![n as u8; length], "item {n}, in order");
    }
    assert_eq!(feeds.recv().await, Some((2, 1)));

    // The other side ends it, and only it.
    let mut other = peers.feed(2).await.unwrap();
    other.sender.send(Bytes::from_static(b"end")).unwrap();
    assert_eq!(next(&mut other).await, None);
    feed.sender.send(Bytes::from_static(b"still here")).unwrap();
    assert_eq!(next(&mut feed).await.unwrap(), "still here");

    // A link that breaks ends all of its feeds, on both sides.
    net.isolate(2, true);
    assert_eq!(next(&mut feed).await, None);
    net.isolate(2, false);
    let mut again = loop {
        if let Ok(mut feed) = peers.feed(2).await
            && feed.sender.send(Bytes::from_static(b"back")).is_ok()
            && let Some(item) = next(&mut feed).await
        {
            assert_eq!(item, "back");
            break feed;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    again.sender.send(Bytes::from_static(b"end")).unwrap();
    assert_eq!(next(&mut again).await, None);
    net.stop().await;
}
