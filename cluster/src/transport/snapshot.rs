//! Both sides of a snapshot: a connection of its own, frames in order, length and checksum at the end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use durahub_proto::peer::peer_client::PeerClient;
use durahub_proto::peer::{Hello, SnapshotCall as CallFrame, SnapshotEnd, SnapshotFrame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::server::rejected;
use super::{FRAME_BYTES, Shared, connect, link};
use crate::machine::GroupId;
use crate::peers::{Peer, PeerError, PeerService, SnapshotBody, SnapshotCall};

/// Frames between the disk and the connection.
const AHEAD: usize = 8;
/// Time in which the next frame must come.
const SILENCE: Duration = Duration::from_secs(30);

/// Sends a snapshot and waits until it is installed.
pub(super) async fn send(
    shared: &Shared,
    to: &Peer,
    call: SnapshotCall,
    timeout: Duration,
) -> Result<Bytes, PeerError> {
    let Some((mine, _)) = shared.hello.get() else {
        let reason = "this node has no identity yet".into();
        return Err(PeerError::Unreachable { peer: to.id, reason });
    };
    // Nothing is read before the peer is there to take it.
    let channel = connect(&shared.secure, to.id, &shared.book.find(to)).await?;
    let (frames, outgoing) = mpsc::channel(AHEAD);
    let head = SnapshotFrame {
        call: Some(CallFrame {
            hello: Some(Hello { to: to.id, ..mine.clone() }),
            group: call.group.0,
            payload: call.payload,
        }),
        ..SnapshotFrame::default()
    };
    let body = call.body;
    let reading = tokio::task::spawn_blocking(move || read(head, &body, &frames));
    let mut client = PeerClient::new(channel);
    let sending = client.install_snapshot(ReceiverStream::new(outgoing));
    let answer = match tokio::time::timeout(timeout, sending).await {
        Ok(Ok(answer)) => Ok(answer.into_inner().payload),
        Ok(Err(status)) => Err(link::refusal(to.id, &status)),
        Err(_) => Err(PeerError::Timeout { peer: to.id, timeout }),
    };
    // The reader ends by itself when nobody takes its frames any more.
    match (reading.await, answer) {
        (Ok(Err(error)), Err(_)) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(PeerError::Failed { peer: to.id, reason: format!("reading the snapshot: {error}") })
        }
        (_, answer) => answer,
    }
}

/// Reads the body into frames.
fn read(
    head: SnapshotFrame,
    body: &SnapshotBody,
    frames: &mpsc::Sender<SnapshotFrame>,
) -> io::Result<()> {
    let push =
        |frame| frames.blocking_send(frame).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    push(head)?;
    let mut source = body.open()?;
    let mut crc = crc32fast::Hasher::new();
    let mut length = 0;
    loop {
        let mut data = BytesMut::zeroed(FRAME_BYTES);
        let mut filled = 0;
        while filled < data.len() {
            match source.read(&mut data[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        data.truncate(filled);
        if data.is_empty() {
            break;
        }
        crc.update(&data);
        length += filled as u64;
        push(SnapshotFrame { data: data.freeze(), ..SnapshotFrame::default() })?;
    }
    let end = Some(SnapshotEnd { length, crc: crc.finalize() });
    push(SnapshotFrame { end, ..SnapshotFrame::default() })
}

/// Where received bytes go; a file that is not finished is removed.
enum Target {
    File { path: PathBuf, file: File, finished: bool },
    Memory(BytesMut),
}

impl Target {
    fn open(path: Option<PathBuf>) -> io::Result<Self> {
        Ok(match path {
            Some(path) => {
                let file = File::create(&path)?;
                Self::File { path, file, finished: false }
            }
            None => Self::Memory(BytesMut::new()),
        })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::File { file, .. } => file.write_all(data),
            Self::Memory(bytes) => {
                bytes.extend_from_slice(data);
                Ok(())
            }
        }
    }

    fn finish(&mut self) -> io::Result<SnapshotBody> {
        Ok(match self {
            Self::File { path, file, finished } => {
                file.sync_all()?;
                *finished = true;
                SnapshotBody::File(path.clone())
            }
            Self::Memory(bytes) => SnapshotBody::Memory(std::mem::take(bytes).freeze()),
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Self::File { path, finished: false, .. } = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Receives a snapshot, checks that it is whole, and has it installed.
pub(super) async fn receive(
    service: &Arc<dyn PeerService>,
    mut frames: Streaming<SnapshotFrame>,
) -> Result<Bytes, Status> {
    let broken = |text: &str| Status::invalid_argument(text.to_owned());
    let failed = |error: io::Error| Status::internal(error.to_string());
    let head =
        next(&mut frames).await?.call.ok_or_else(|| broken("the first frame has no call"))?;
    let hello = head.hello.ok_or_else(|| broken("the call has no greeting"))?;
    service.greet(&hello).map_err(rejected)?;
    let group = GroupId(head.group);
    let path = service
        .incoming_snapshot(group)
        .map_err(|error| Status::failed_precondition(error.reason()))?;
    let mut target = Target::open(path).map_err(failed)?;
    let (mut length, mut crc) = (0_u64, crc32fast::Hasher::new());
    loop {
        let frame = next(&mut frames).await?;
        if let Some(end) = frame.end {
            if end.length != length || end.crc != crc.finalize() {
                return Err(broken("the snapshot was damaged on its way"));
            }
            break;
        }
        length += frame.data.len() as u64;
        // One frame at a time, so a slow disk slows the sender; what is written lies in the page cache.
        let write = tokio::task::spawn_blocking(move || {
            let mut crc = crc;
            crc.update(&frame.data);
            target.write(&frame.data).map(|()| (target, crc))
        });
        (target, crc) = write.await.map_err(io::Error::other).and_then(|r| r).map_err(failed)?;
    }
    let finish = tokio::task::spawn_blocking(move || target.finish());
    let body = finish.await.map_err(io::Error::other).and_then(|r| r).map_err(failed)?;
    let call = SnapshotCall { group, payload: head.payload, body };
    service.snapshot(call).await.map_err(|error| Status::internal(error.reason()))
}

async fn next(frames: &mut Streaming<SnapshotFrame>) -> Result<SnapshotFrame, Status> {
    match tokio::time::timeout(SILENCE, frames.message()).await {
        Ok(Ok(Some(frame))) => Ok(frame),
        Ok(Ok(None)) => Err(Status::invalid_argument("the snapshot ended early")),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded(format!("no frame within {SILENCE:?}"))),
    }
}
