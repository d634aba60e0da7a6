//! `durahub health`: asks a node how it is, over its HTTP port; for containers, which have no other tool in them.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

/// Longest wait for a connection, and for each part of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read; a real one has a line per check.
const LONGEST: u64 = 64 << 10;

/// Asks a node whether it takes work and prints what it says. Exit code 1 when it does not.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// HTTP address of the node, without TLS
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8082")]
    endpoint: String,
    /// Ask only whether the process lives: true also without a quorum, while it starts and while it drains
    #[arg(long)]
    live: bool,
}

/// Asks, and gives the answer of a healthy node.
///
/// # Errors
/// When nobody answers within 5 s, or the answer is that the node takes no work.
pub(super) fn run(args: &HealthArgs) -> anyhow::Result<String> {
    let endpoint = &args.endpoint;
    let path = if args.live { "/livez" } else { "/readyz" };
    let Some(address) = endpoint.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'))
    else {
        bail!("endpoint {endpoint}: give http://HOST:PORT");
    };
    let answer = ask(address, path).with_context(|| format!("ask {endpoint}{path}"))?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("{endpoint}{path} gave no HTTP answer");
    };
    let line = head.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) == Some("200") {
        return Ok(body.to_owned());
    }
    bail!("{endpoint}{path} answers {line}: {}", body.trim_end().replace('\n', "; "))
}

fn ask(address: &str, path: &str) -> anyhow::Result<String> {
    let at = address.to_socket_addrs()?.next().context("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
