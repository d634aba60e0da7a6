//! Mutual TLS between nodes.
//!
//! Each node shows a certificate, as a server and as a client, signed by the cluster's CA. Whoever dials
//! checks that it is for the host that was dialled (or for the one name that all nodes carry). Whoever is
//! dialled checks, in the `cluster` package, that it is for the host under which the cluster knows the node
//! that greets. A connection without a certificate gets as far as the calls of operators, who have other
//! ways to say who they are.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use durahub_cluster::transport::{PeerStream, Secure, Shown};
use futures::future::BoxFuture;
use parking_lot::RwLock;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificate::Certificate;
use super::files::{self, TlsError};
use super::{HTTP2, provider, server};

/// Where the certificate of a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFiles {
    /// PEM file with the certificate, and those that signed it.
    pub cert: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the certificates that sign those of all nodes.
    pub ca: PathBuf,
    /// The name that every node's certificate carries; `None`: the host of its address.
    pub name: Option<String>,
}

/// How connections between nodes are wrapped. Connections that are made later see what was loaded last.
pub struct PeerTls {
    files: PeerFiles,
    current: RwLock<Ends>,
}

#[derive(Clone)]
struct Ends {
    dialling: Arc<ClientConfig>,
    dialled: Arc<ServerConfig>,
}

impl PeerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used, or the key is not that of the certificate.
    pub fn load(files: PeerFiles) -> Result<PeerTls, TlsError> {
        let current = RwLock::new(read(&files)?);
        Ok(PeerTls { files, current })
    }

    /// Whether the certificates of all nodes carry one name.
    pub fn has_one_name(&self) -> bool {
        self.files.name.is_some()
    }

    /// Reads the files again, for connections from now on.
    ///
    /// # Errors
    /// [`TlsError`]; what was loaded before stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let ends = read(&self.files)?;
        *self.current.write() = ends;
        Ok(())
    }
}

fn read(files: &PeerFiles) -> Result<Ends, TlsError> {
    let (roots, chain) = (files::roots(&files.ca), files::certificates(&files.cert));
    let key = files::key(&files.key);
    let wrong = [chain.as_ref().err(), key.as_ref().err(), roots.as_ref().err()];
    TlsError::all(wrong.map(|wrong| wrong.cloned()))?;
    let (roots, chain, key) = (roots?, chain?, key?);
    let wrong = |error: String| TlsError::new(&files.cert, error);
    let mut dialling = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .map_err(|error| wrong(error.to_string()))?;
    let mut dialled = server::config(Some(roots), chain, key).map_err(wrong)?;
    dialling.alpn_protocols = vec![HTTP2.to_vec()];
    dialled.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(Ends { dialling: Arc::new(dialling), dialled: Arc::new(dialled) })
}

/// A node's certificate, where all nodes carry one name.
struct Named(Certificate, String);

impl Shown for Named {
    fn names(&self) -> &[String] {
        self.0.names()
    }

    fn is_for(&self, _: &str) -> bool {
        self.0.is_for(&self.1)
    }
}

impl Secure for PeerTls {
    fn connect<'a>(
        &'a self,
        tcp: TcpStream,
        host: &'a str,
    ) -> BoxFuture<'a, io::Result<PeerStream>> {
        Box::pin(async move {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let name = self.files.name.as_deref().unwrap_or(host).to_owned();
            let name = ServerName::try_from(name).map_err(io::Error::other)?;
            let connector = TlsConnector::from(self.current.read().dialling.clone());
            Ok(PeerStream::new(connector.connect(name, tcp).await?))
        })
    }

    fn accept(&self, tcp: TcpStream) -> BoxFuture<'_, io::Result<PeerStream>> {
        Box::pin(async move {
            let acceptor = TlsAcceptor::from(self.current.read().dialled.clone());
            let stream = acceptor.accept(tcp).await?;
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let shown = shown.map(Certificate::new).map(|certificate| -> Arc<dyn Shown> {
                match &self.files.name {
                    Some(name) => Arc::new(Named(certificate, name.clone())),
                    None => Arc::new(certificate),
                }
            });
            Ok(PeerStream::secured(stream, shown))
        })
    }
}
