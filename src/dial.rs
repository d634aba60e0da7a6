//! How a command reaches a server: whom it trusts, and how it says who asks.

use std::path::PathBuf;

use clap::Args;
use tonic::metadata::{Ascii, MetadataValue};

use crate::tls::{ClientFiles, ClientTls, Dial, HTTP1, HTTP2};

/// What a command may be told about it.
#[derive(Args, Clone, Debug, Default)]
pub struct DialArgs {
    /// Token that says who asks; better given by its variable or by --token-file, which nobody else can read
    #[arg(
        long,
        global = true,
        env = "DURAHUB_TOKEN",
        hide_env_values = true,
        help_heading = "Server"
    )]
    token: Option<String>,
    /// File that holds the token, read anew by each command
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "DURAHUB_TOKEN_FILE",
        help_heading = "Server"
    )]
    token_file: Option<PathBuf>,
    /// Certificates that sign that of an https:// server, PEM; without it those that this machine trusts
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "DURAHUB_CA_FILE",
        help_heading = "Server"
    )]
    ca_file: Option<PathBuf>,
    /// Certificate that says who asks, PEM (with --key-file)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "DURAHUB_CERT_FILE",
        help_heading = "Server"
    )]
    cert_file: Option<PathBuf>,
    /// Private key of --cert-file, PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "DURAHUB_KEY_FILE",
        help_heading = "Server"
    )]
    key_file: Option<PathBuf>,
}

/// A file or a flag that cannot be used, in one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DialError(String);

impl DialArgs {
    /// What opens connections for gRPC.
    ///
    /// # Errors
    /// [`DialError`] when a file cannot be used.
    pub fn dial(&self) -> Result<Dial, DialError> {
        self.dial_for(HTTP2)
    }

    /// What opens connections to the HTTP port.
    ///
    /// # Errors
    /// [`DialError`] when a file cannot be used.
    pub fn dial_pages(&self) -> Result<Dial, DialError> {
        self.dial_for(HTTP1)
    }

    fn dial_for(&self, speaks: &[u8]) -> Result<Dial, DialError> {
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => return Err(DialError("--cert-file and --key-file go together".into())),
        };
        let files = ClientFiles { ca: self.ca_file.clone(), identity };
        let tls = ClientTls::load(&files, speaks).map_err(|error| DialError(error.to_string()))?;
        Ok(Dial(tls))
    }

    /// The header `authorization`.
    ///
    /// # Errors
    /// [`DialError`] when the file cannot be read, or what it holds is no token.
    pub fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, DialError> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(path)) => std::fs::read_to_string(path).map_err(|error| {
                DialError(format!("--token-file {}: cannot be read: {error}", path.display()))
            })?,
            (None, None) => return Ok(None),
        };
        let value = format!("Bearer {}", token.trim()).parse::<MetadataValue<Ascii>>();
        let mut value =
            value.map_err(|_| DialError("the token holds characters of no token".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}
