//! The configuration of a port: which certificate it shows, and whose it takes.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::files::{self, TlsError};
use super::provider;

/// Where the certificate of a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// PEM file with the certificate, and those that signed it.
    pub cert: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the certificates that sign those of clients. `None`: clients are not asked for theirs.
    pub client_ca: Option<PathBuf>,
}

/// How the connections of a port are wrapped. Connections that are made later see what was loaded last.
pub struct ServerTls {
    files: ServerFiles,
    speaks: &'static [u8],
    current: RwLock<Arc<ServerConfig>>,
}

impl ServerTls {
    /// Reads the files of a port that speaks a protocol ([`HTTP2`](super::HTTP2), [`HTTP1`](super::HTTP1)).
    ///
    /// # Errors
    /// [`TlsError`] when a file cannot be used, or the key is not that of the certificate.
    pub fn load(files: ServerFiles, speaks: &'static [u8]) -> Result<ServerTls, TlsError> {
        let current = RwLock::new(Arc::new(read(&files, speaks)?));
        Ok(ServerTls { files, speaks, current })
    }

    /// Reads the files again, for connections from now on.
    ///
    /// # Errors
    /// [`TlsError`]; what was loaded before stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let config = read(&self.files, self.speaks)?;
        *self.current.write() = Arc::new(config);
        Ok(())
    }

    /// The configuration of the next connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.read().clone()
    }
}

fn read(files: &ServerFiles, speaks: &[u8]) -> Result<ServerConfig, TlsError> {
    let roots = files.client_ca.as_deref().map(files::roots).transpose();
    let (chain, key) = (files::certificates(&files.cert), files::key(&files.key));
    let wrong = [chain.as_ref().err(), key.as_ref().err(), roots.as_ref().err()];
    TlsError::all(wrong.map(|wrong| wrong.cloned()))?;
    let (roots, chain, key) = (roots?, chain?, key?);
    let mut config = config(roots, chain, key).map_err(|text| TlsError::new(&files.cert, text))?;
    config.alpn_protocols = vec![speaks.to_vec()];
    Ok(config)
}

/// A configuration that asks for a certificate of the client when there are roots, and goes on without one.
pub(super) fn config(
    roots: Option<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, String> {
    let versions = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let clients = match roots {
        None => versions.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|error| error.to_string())?;
            versions.with_client_cert_verifier(verifier)
        }
    };
    clients.with_single_cert(chain, key).map_err(|error| error.to_string())
}
