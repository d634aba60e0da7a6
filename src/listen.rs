//! Taking the ports: before anything else, and with a message that says what to do when one is not free.
//!
//! Binding is apart from serving: the server binds all its ports first, so a port in use ends the process
//! before the data folder is touched. A bound listener already queues connections; nothing answers them
//! until it is served. Where that would make callers wait, an address is only [taken](take) first: they are refused.
//! That tells of one at which somebody listens already. Two that take the same one while neither listens find out when
//! the second begins to.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted at an address that was taken first.
const BACKLOG: u32 = 1024;

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
    TcpListener::bind(addr).await.map_err(|error| refused(flag, addr, &error))
}

/// An address that is taken, and at which nobody listens yet: who connects is refused at once.
#[derive(Debug)]
pub struct Taken {
    flag: &'static str,
    addr: SocketAddr,
    socket: TcpSocket,
}

/// Takes the address that a flag names. See [`bind`].
///
/// # Errors
/// As [`bind`].
pub fn take(flag: &'static str, addr: SocketAddr) -> Result<Taken, BindError> {
    let take = || -> io::Result<_> {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Connections of a server before this one may not have ended altogether.
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        Ok((socket.local_addr()?, socket))
    };
    let (addr, socket) = take().map_err(|error| refused(flag, addr, &error))?;
    Ok(Taken { flag, addr, socket })
}

impl Taken {
    /// The address, with the port that was found where none was named.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Listens.
    ///
    /// # Errors
    /// When somebody else took the address at the same moment, and listens.
    pub fn listen(self) -> Result<TcpListener, BindError> {
        let Self { flag, addr, socket } = self;
        socket.listen(BACKLOG).map_err(|error| refused(flag, addr, &error))
    }
}

fn refused(flag: &'static str, addr: SocketAddr, error: &io::Error) -> BindError {
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
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

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
    async fn an_address_is_taken_before_anybody_listens_there() {
        let taken = take("peer-addr", "127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = taken.addr();
        let refused = TcpStream::connect(addr).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let listener = taken.listen().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
        near.and(far).unwrap();
        let error = take("peer-addr", addr).unwrap_err().to_string();
        assert!(error.contains("--peer-addr") && error.contains("in use"), "{error}");
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_told_apart() {
        let error =
            bind("http-addr", "192.0.2.1:0".parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("no such address"), "{error}");
    }
}
