//! From a listener to connections: each with a place of its own, handshakes side by side, each within its time, and
//! a look at the first byte that tells TLS from plaintext on one port (R1.6, R1.22).
//!
//! Nobody waits for anybody else's handshake: a connection that finds a place has a task of its own from then on, and
//! one that finds none is closed. At a port that speaks HTTP/2 a connection must begin as such within the same time.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use durahub_cluster::transport::{Greeting, Place, Places};
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::HTTP2;
use super::certificate::Certificate;
use super::server::ServerTls;

/// Time for a handshake, from when the connection was accepted.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Connections that are made and not yet taken.
const WAITING: usize = 64;
/// First byte of every TLS connection: a handshake record.
const HANDSHAKE: u8 = 0x16;

/// Whose connections without TLS are taken although there is TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plaintext {
    /// Nobody's.
    Never,
    /// Those of programs on this machine.
    Loopback,
    /// Everybody's.
    Always,
}

impl Plaintext {
    fn takes(self, from: SocketAddr) -> bool {
        match self {
            Plaintext::Never => false,
            Plaintext::Loopback => from.ip().to_canonical().is_loopback(),
            Plaintext::Always => true,
        }
    }
}

/// A connection of a client.
pub struct Connection {
    io: Io,
    remote: SocketAddr,
    /// What the client showed.
    certificate: Option<Arc<Certificate>>,
    greeting: Greeting,
    /// Free again when the connection is gone.
    _place: Place,
}

enum Io {
    /// Bytes as they are.
    Plain(TcpStream),
    /// Bytes within TLS.
    Secured(Box<TlsStream<TcpStream>>),
}

/// What is known of the other end of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Where it comes from.
    pub remote: SocketAddr,
    /// The certificate that it showed.
    pub certificate: Option<Arc<Certificate>>,
    /// What one layer remembers of the connection, for as long as it lives.
    pub memory: Arc<OnceLock<Arc<dyn Any + Send + Sync>>>,
}

impl Connection {
    /// What is known of the other end.
    pub(crate) fn info(&self) -> ConnectionInfo {
        ConnectionInfo {
            remote: self.remote,
            certificate: self.certificate.clone(),
            memory: Arc::default(),
        }
    }
}

/// The connections of a port, as they come. Dropped, it takes no more.
pub struct Incoming {
    connections: mpsc::Receiver<Connection>,
    accepting: AbortHandle,
}

/// Takes the connections of a listener: all as they are, or wrapped in TLS and only those as they are that
/// `plaintext` allows. Those that find no place are closed, and those that do not begin as `speaks`
/// ([`HTTP2`](super::HTTP2), [`HTTP1`](super::HTTP1)) wants it.
pub fn accept(
    listener: TcpListener,
    tls: Option<(Arc<ServerTls>, Plaintext)>,
    places: Places,
    speaks: &'static [u8],
) -> Incoming {
    let (sender, connections) = mpsc::channel(WAITING);
    let accepting = tokio::spawn(run(listener, tls, places, speaks, sender)).abort_handle();
    Incoming { connections, accepting }
}

async fn run(
    listener: TcpListener,
    tls: Option<(Arc<ServerTls>, Plaintext)>,
    places: Places,
    speaks: &'static [u8],
    sender: mpsc::Sender<Connection>,
) {
    loop {
        let (tcp, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of handles, or a connection that ended at once: neither may end the port.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = places.enter(remote.ip()) else { continue };
        let _ = tcp.set_nodelay(true);
        let (sender, tls) = (sender.clone(), tls.clone());
        tokio::spawn(async move {
            let wrapped = wrap(tcp, remote, tls);
            match tokio::time::timeout(HANDSHAKE_TIME, wrapped).await {
                Ok(Ok((io, certificate))) => {
                    let greeting = match speaks {
                        HTTP2 => Greeting::within(HANDSHAKE_TIME),
                        // Whoever reads requests has a time for each.
                        _ => Greeting::default(),
                    };
                    let connection =
                        Connection { io, remote, certificate, greeting, _place: place };
                    drop(sender.send(connection).await);
                }
                Ok(Err(error)) => tracing::debug!(%remote, %error, "a connection was refused"),
                Err(_) => tracing::debug!(%remote, "a handshake took too long"),
            }
        });
    }
}

async fn wrap(
    tcp: TcpStream,
    from: SocketAddr,
    tls: Option<(Arc<ServerTls>, Plaintext)>,
) -> io::Result<(Io, Option<Arc<Certificate>>)> {
    let mut first = [0];
    // Who says nothing keeps no place, whatever is spoken here.
    if tcp.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let Some((tls, plaintext)) = tls else { return Ok((Io::Plain(tcp), None)) };
    if first[0] != HANDSHAKE {
        return match plaintext.takes(from) {
            true => Ok((Io::Plain(tcp), None)),
            false => Err(io::Error::other("plaintext, and tls.plaintext does not allow it")),
        };
    }
    let stream = TlsAcceptor::from(tls.current()).accept(tcp).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.map(|der| Arc::new(Certificate::new(der)));
    Ok((Io::Secured(Box::new(stream)), certificate))
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Connection>>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Connection { io, greeting, .. } = self.get_mut();
        greeting.poll_read(cx, buf, |cx, buf| match io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Secured(stream) => Pin::new(stream).poll_read(cx, buf),
        })
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Secured(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Secured(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Secured(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Secured(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Secured(stream) => stream.is_write_vectored(),
        }
    }
}
