//! Transport security: certificates, who shows them, and how connections are wrapped.
//!
//! Everything is rustls. A certificate on disk may be replaced while the node runs: what is kept is the
//! *configuration of the next connection*, so a reload never touches a connection that is there, and a file
//! that cannot be used leaves the old configuration in place.
//!
//! - [`files`]: PEM files into certificates, keys and roots;
//! - [`certificate`]: the names in a certificate that somebody showed;
//! - [`server`]: the configuration of a port, and its replacement;
//! - [`accept`]: from a listener to connections, with or without TLS;
//! - [`client`]: the calling end, for the command line;
//! - [`peer`]: both ends between nodes.

mod accept;
mod certificate;
mod client;
mod files;
mod peer;
mod server;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use accept::{Connection, ConnectionInfo, Incoming, Plaintext, accept};
pub use certificate::Certificate;
pub use client::{ClientFiles, ClientTls, Dial};
pub use files::TlsError;
pub use peer::{PeerFiles, PeerTls};
pub use server::{ServerFiles, ServerTls};

/// The cryptography of all connections: ring, named here so that no other crate's features choose it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What the gRPC port speaks over TLS.
pub const HTTP2: &[u8] = b"h2";
/// What the HTTP port speaks over TLS.
pub const HTTP1: &[u8] = b"http/1.1";
