//! From a listener to connections: handshakes side by side, each within its time, and a look at the first
//! byte that tells TLS from plaintext on one port (R1.6, R1.22).

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::Certificate;
use super::server::ServerTls;

/// Time for a handshake, from the first byte of a connection.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Handshakes under way at the same time; more connections wait in the listener's queue.
const HANDSHAKES: usize = 1024;
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
pub enum Connection {
    /// Bytes as they are.
    Plain(TcpStream, SocketAddr),
    /// Bytes within TLS, and the certificate that the client showed.
    Secured(Box<TlsStream<TcpStream>>, SocketAddr, Option<Arc<Certificate>>),
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
    fn info(&self) -> ConnectionInfo {
        match self {
            Connection::Plain(_, remote) => {
                ConnectionInfo { remote: *remote, certificate: None, memory: Arc::default() }
            }
            Connection::Secured(_, remote, certificate) => ConnectionInfo {
                remote: *remote,
                certificate: certificate.clone(),
                memory: Arc::default(),
            },
        }
    }
}

/// The connections of a port, as they come. Dropped, it takes no more.
pub struct Incoming {
    local: SocketAddr,
    connections: mpsc::Receiver<Connection>,
    accepting: AbortHandle,
}

/// Takes the connections of a listener: all as they are, or wrapped in TLS and only those as they are that
/// `plaintext` allows.
///
/// # Errors
/// When the listener has no address.
pub fn accept(
    listener: TcpListener,
    tls: Option<(Arc<ServerTls>, Plaintext)>,
) -> io::Result<Incoming> {
    let local = listener.local_addr()?;
    let (sender, connections) = mpsc::channel(WAITING);
    let accepting = tokio::spawn(run(listener, tls, sender)).abort_handle();
    Ok(Incoming { local, connections, accepting })
}

async fn run(
    listener: TcpListener,
    tls: Option<(Arc<ServerTls>, Plaintext)>,
    sender: mpsc::Sender<Connection>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of handles, or a connection that ended at once: neither may end the port.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = tcp.set_nodelay(true);
        let Some((tls, plaintext)) = tls.clone() else {
            if sender.send(Connection::Plain(tcp, from)).await.is_err() {
                return;
            }
            continue;
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(HANDSHAKE_TIME, wrap(tcp, from, &tls, plaintext)).await {
                Ok(Ok(connection)) => drop(sender.send(connection).await),
                Ok(Err(error)) => tracing::debug!(%from, %error, "a connection was refused"),
                Err(_) => tracing::debug!(%from, "a handshake took too long"),
            }
        });
    }
}

async fn wrap(
    tcp: TcpStream,
    from: SocketAddr,
    tls: &ServerTls,
    plaintext: Plaintext,
) -> io::Result<Connection> {
    let mut first = [0];
    if tcp.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] != HANDSHAKE {
        return match plaintext.takes(from) {
            true => Ok(Connection::Plain(tcp, from)),
            false => Err(io::Error::other("plaintext, and tls.plaintext does not allow it")),
        };
    }
    let stream = TlsAcceptor::from(tls.current()).accept(tcp).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.map(|der| Arc::new(Certificate::new(der)));
    Ok(Connection::Secured(Box::new(stream), from, certificate))
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// For the gRPC port.
impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Connection>>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

/// For the HTTP port.
impl axum::serve::Listener for Incoming {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.connections.recv().await {
            Some(connection) => {
                let remote = connection.info().remote;
                (connection, remote)
            }
            // The runtime is on its way out.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info()
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Incoming>>
    for ConnectionInfo
{
    fn connect_info(stream: axum::serve::IncomingStream<'_, Incoming>) -> ConnectionInfo {
        stream.io().info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream, ..) => Pin::new(stream).poll_read(cx, buf),
            Connection::Secured(stream, ..) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream, ..) => Pin::new(stream).poll_write(cx, buf),
            Connection::Secured(stream, ..) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream, ..) => Pin::new(stream).poll_flush(cx),
            Connection::Secured(stream, ..) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream, ..) => Pin::new(stream).poll_shutdown(cx),
            Connection::Secured(stream, ..) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream, ..) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Connection::Secured(stream, ..) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Connection::Plain(stream, ..) => stream.is_write_vectored(),
            Connection::Secured(stream, ..) => stream.is_write_vectored(),
        }
    }
}
