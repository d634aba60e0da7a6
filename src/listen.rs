//! Taking the ports: before anything else, and with a message that says what to do when one is not free.
//!
//! Binding is apart from serving: the server binds all its ports first, so a port in use ends the process
//! before the data folder is touched. A bound listener already queues connections; nothing answers them
//! until it is served.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::net::TcpListener;

/// An address could not be taken. The text names the flag, the address and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} (--{flag}): {advice}")]
pub struct BindError {
    /// Flag that names the address, without dashes in front.
    pub flag: &'static str,
    /// The address.
    pub addr: SocketAddr,
    /// What is in the way, and what to do about it.
    pub advice: String,
}

/// Binds the address that a flag (without dashes in front, such as `grpc-addr`) names.
///
/// # Errors
/// [`BindError`] when the address is in use, not of this machine, or not allowed.
pub async fn bind(flag: &'static str, addr: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|error| {
        let variable = format!("DURAHUB_{}", flag.replace('-', "_").to_ascii_uppercase());
        let other = format!("choose another with --{flag} or {variable}");
        let advice = match error.kind() {
            ErrorKind::AddrInUse => format!(
                "the address is in use; stop what listens there (`ss -ltnp 'sport = :{}'` shows it) or {other}",
                addr.port()
            ),
            ErrorKind::AddrNotAvailable => format!("this machine has no such address; {other}"),
            ErrorKind::PermissionDenied => {
                format!("not permitted (ports below 1024 need privileges); {other}")
            }
            _ => format!("{error}; {other}"),
        };
        BindError { flag, addr, advice }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_in_use_names_flag_address_and_remedy() {
        let first = bind("grpc-addr", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = first.local_addr().unwrap();
        let error = bind("grpc-addr", addr).await.unwrap_err().to_string();
        for part in [&addr.to_string(), "--grpc-addr", "DURAHUB_GRPC_ADDR", "in use"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_told_apart() {
        let error =
            bind("http-addr", "192.0.2.1:0".parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("no such address"), "{error}");
    }
}
