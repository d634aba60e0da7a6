//! `durahub health`: asks a node how it is, over its HTTP port; for containers, which have no other tool in them.

use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::http::Uri;
use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::dial::DialArgs;

/// Longest wait for the whole of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read; a real one has a line per check.
const LONGEST: u64 = 64 << 10;

/// Asks a node whether it takes work and prints what it says. Exit code 1 when it does not.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// HTTP address of the node, http:// or, where it has a certificate, https://
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8082")]
    endpoint: String,
    /// Ask only whether the process lives: true also without a quorum, while it starts and while it drains
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    dial: DialArgs,
}

/// Asks, and gives the answer of a healthy node.
///
/// # Errors
/// When nobody answers within 5 s, or the answer is that the node takes no work.
pub(super) async fn run(args: &HealthArgs) -> anyhow::Result<String> {
    let endpoint = args.endpoint.trim_end_matches('/');
    let path = if args.live { "/livez" } else { "/readyz" };
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        bail!("endpoint {endpoint}: give http://HOST:PORT or https://HOST:PORT");
    }
    let url: Uri = format!("{endpoint}{path}")
        .parse()
        .with_context(|| format!("endpoint {endpoint}: is not a URL"))?;
    let asked = tokio::time::timeout(PATIENCE, ask(&args.dial, &url)).await;
    let answer = asked
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}")))
        .with_context(|| format!("ask {url}"))?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("{url} gave no HTTP answer");
    };
    let line = head.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) == Some("200") {
        return Ok(body.to_owned());
    }
    bail!("{url} answers {line}: {}", body.trim_end().replace('\n', "; "))
}

async fn ask(dial: &DialArgs, url: &Uri) -> anyhow::Result<String> {
    let mut stream = dial.dial_pages()?.open(url).await?;
    let host = url.authority().map_or("", |authority| authority.as_str());
    let path = url.path();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    match stream.take(LONGEST).read_to_end(&mut answer).await {
        // Something in between may end a TLS connection without saying so.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
        read => drop(read?),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
