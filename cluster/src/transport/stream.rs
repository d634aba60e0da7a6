//! How a TCP connection becomes a stream of bytes: as it is, or wrapped by a [`Secure`] of the program's, and
//! what is known of the other end then.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::codegen::{Service, http};
use tonic::transport::server::Connected;

use super::greeting::Greeting;
use super::places::Place;

/// What a stream of bytes must be able to do.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// A certificate that the other end showed, and that is signed as it must be.
pub trait Shown: Send + Sync + 'static {
    /// Its names, the one that matters most first.
    fn names(&self) -> &[String];

    /// Whether it is the certificate of the node on this host.
    fn is_for(&self, host: &str) -> bool;
}

/// What is known of the other end of a connection to the peer port.
#[derive(Clone, Default)]
pub struct PeerInfo {
    /// Whether nodes must show a certificate.
    pub secured: bool,
    /// The one that was shown.
    pub shown: Option<Arc<dyn Shown>>,
}

impl PeerInfo {
    /// Whether the other end may speak for a node on one of these hosts (`host:port`).
    pub(super) fn speaks_for<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) -> bool {
        let host = |address: &'a str| address.rsplit_once(':').map_or(address, |(host, _)| host);
        let is_for = |shown: &Arc<dyn Shown>| {
            addresses.into_iter().any(|address| shown.is_for(host(address)))
        };
        !self.secured || self.shown.as_ref().is_some_and(is_for)
    }
}

/// A connection between nodes, and the place that it has at the port, if it came there.
pub struct PeerStream {
    stream: Box<dyn Bytes>,
    info: PeerInfo,
    greeting: Greeting,
    _place: Option<Place>,
}

impl PeerStream {
    /// Wraps whatever carries the bytes.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self::known(stream, PeerInfo::default())
    }

    /// The same for the answering end of a connection on which nodes must show a certificate.
    pub fn secured(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        shown: Option<Arc<dyn Shown>>,
    ) -> Self {
        Self::known(stream, PeerInfo { secured: true, shown })
    }

    fn known(stream: impl Bytes + 'static, info: PeerInfo) -> Self {
        Self { stream: Box::new(stream), info, greeting: Greeting::default(), _place: None }
    }

    /// Came to the port: it must begin in time. The place is free again when the connection is gone.
    pub(super) fn holding(self, place: Place, greeting: Greeting) -> Self {
        Self { _place: Some(place), greeting, ..self }
    }
}

/// Wraps both ends of a connection between nodes.
pub trait Secure: Send + Sync + 'static {
    /// The calling end, after `host` was reached.
    fn connect<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
    ) -> BoxFuture<'a, io::Result<PeerStream>>;

    /// The answering end.
    fn accept(&self, tcp: TcpStream) -> BoxFuture<'_, io::Result<PeerStream>>;
}

/// Bytes as they are: for a network that nobody else can reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Secure for Plain {
    fn connect<'a>(&'a self, tcp: TcpStream, _: &'a str) -> BoxFuture<'a, io::Result<PeerStream>> {
        Box::pin(async { Ok(PeerStream::new(tcp)) })
    }

    fn accept(&self, tcp: TcpStream) -> BoxFuture<'_, io::Result<PeerStream>> {
        Box::pin(async { Ok(PeerStream::new(tcp)) })
    }
}

/// Dials one address; the name is looked up each time.
#[derive(Clone)]
pub(super) struct Dial {
    pub(super) secure: Arc<dyn Secure>,
    pub(super) address: String,
}

impl Service<http::Uri> for Dial {
    type Response = TokioIo<PeerStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<PeerStream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect(&dial.address).await?;
            tcp.set_nodelay(true)?;
            let host = dial.address.rsplit_once(':').map_or("", |(host, _)| host);
            Ok(TokioIo::new(dial.secure.connect(tcp, host).await?))
        })
    }
}

impl Connected for PeerStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, greeting, .. } = self.get_mut();
        greeting.poll_read(cx, buf, |cx, buf| Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
