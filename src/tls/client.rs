//! The calling end, for the command line, the benchmark and whoever fetches keys.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::{Service, http};

use super::files::{self, TlsError};
use super::provider;

/// Whom a client trusts, and what it shows.
#[derive(Clone, Debug, Default)]
pub struct ClientFiles {
    /// PEM file with the certificates that sign those of servers; `None`: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// PEM files with a certificate to show, and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How a client wraps its connections. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// Reads the files of a client that speaks a protocol.
    ///
    /// # Errors
    /// [`TlsError`] when a file cannot be used.
    pub fn load(client: &ClientFiles, speaks: &[u8]) -> Result<ClientTls, TlsError> {
        let roots = match &client.ca {
            Some(path) => files::roots(path)?,
            None => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &client.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(files::certificates(cert)?, files::key(key)?)
                .map_err(|error| TlsError::new(cert, error))?,
        };
        config.alpn_protocols = vec![speaks.to_vec()];
        Ok(ClientTls(Arc::new(config)))
    }

    async fn connect(&self, tcp: TcpStream, host: &str) -> io::Result<Box<dyn Bytes>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(self.0.clone()).connect(name, tcp).await?;
        Ok(Box::new(stream))
    }
}

/// A stream of bytes.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// Dials URLs: `https` within TLS, everything else as it is.
#[derive(Clone)]
pub struct Dial(pub ClientTls);

impl Dial {
    /// Opens a connection to the server of a URL.
    ///
    /// # Errors
    /// When it cannot be reached, or is not who it should be.
    pub async fn open(&self, url: &http::Uri) -> io::Result<Box<dyn Bytes>> {
        let secured = url.scheme_str() == Some("https");
        let host = url.host().ok_or_else(|| io::Error::other("the URL names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_u16().unwrap_or(if secured { 443 } else { 80 });
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        if secured { self.0.connect(tcp, host).await } else { Ok(Box::new(tcp)) }
    }
}

impl Service<http::Uri> for Dial {
    type Response = TokioIo<Box<dyn Bytes>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: http::Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.open(&url).await.map(TokioIo::new) })
    }
}
