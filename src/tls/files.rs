//! PEM files into certificates, keys and roots. Errors name the file and what it should hold.

use std::path::Path;

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why TLS cannot be set up: a sentence for each file, which it names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub(super) String);

impl TlsError {
    /// Whether something is wrong, and all of it.
    pub(super) fn all(found: impl IntoIterator<Item = Option<TlsError>>) -> Result<(), TlsError> {
        let found: Vec<_> = found.into_iter().flatten().map(|TlsError(text)| text).collect();
        if found.is_empty() { Ok(()) } else { Err(TlsError(found.join("; "))) }
    }

    pub(super) fn new(path: &Path, text: impl std::fmt::Display) -> TlsError {
        TlsError(format!("{}: {text}", path.display()))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::new(path, format!("cannot be read: {error}")))
}

/// The certificates of a file, in their order, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| TlsError::new(path, format!("is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(TlsError::new(path, "holds no certificate (BEGIN CERTIFICATE)"));
    }
    Ok(found)
}

/// The private key of a file. What is wrong with a key is told without a word of it.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| TlsError::new(path, "holds no private key (BEGIN PRIVATE KEY)"))
}

/// The certificates of a file as those that sign others.
pub(super) fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::new(path, error))?;
    }
    Ok(roots)
}
