//! Fetches one small document over HTTPS: the keys of an issuer.

use std::time::Duration;

use axum::http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::tls::{ClientFiles, ClientTls, Dial, HTTP1};

/// Time for the whole of it.
const TIME: Duration = Duration::from_secs(10);
/// Longest answer, in bytes, its header included.
const BYTES: u64 = 1 << 20;

/// The body at a URL; redirects are not followed.
pub(super) async fn get(url: &str, ca: Option<std::path::PathBuf>) -> Result<Vec<u8>, String> {
    let uri: Uri = url.parse().map_err(|_| "is not a URL".to_owned())?;
    // Read again each time: a CA may be replaced, too.
    let tls = ClientTls::load(&ClientFiles { ca, identity: None }, HTTP1);
    let dial = Dial(tls.map_err(|error| error.to_string())?);
    let fetched = tokio::time::timeout(TIME, exchange(&dial, &uri)).await;
    fetched.unwrap_or_else(|_| Err(format!("gives no answer within {TIME:?}")))
}

/// HTTP/1.0, so that the end of the answer is the end of the connection.
async fn exchange(dial: &Dial, uri: &Uri) -> Result<Vec<u8>, String> {
    let io = |error: std::io::Error| format!("cannot be asked: {error}");
    let mut stream = dial.open(uri).await.map_err(io)?;
    let authority = uri.authority().ok_or("names no host")?;
    let host = authority.as_str().rsplit('@').next().unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = format!(
        "GET {path} HTTP/1.0\r\nhost: {host}\r\naccept: application/json\r\nuser-agent: durahub/{}\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    let mut answer = Vec::new();
    let read = stream.take(BYTES).read_to_end(&mut answer).await;
    // Some servers end a TLS connection without saying so; a JSON text that was cut is noticed when it is read.
    if let Err(error) = read
        && error.kind() != std::io::ErrorKind::UnexpectedEof
    {
        return Err(io(error));
    }
    body(&answer)
}

fn body(answer: &[u8]) -> Result<Vec<u8>, String> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or("does not speak HTTP")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap_or_default();
    if !head.starts_with("http/1.") || status != "200" {
        return Err(format!("answers with status {status:?}"));
    }
    let body = &answer[end + 4..];
    // Asked in HTTP/1.0, a server must not; some do.
    if head.lines().any(|line| line.starts_with("transfer-encoding:") && line.contains("chunked")) {
        return unchunk(body).ok_or_else(|| "sends an answer that breaks off".to_owned());
    }
    Ok(body.to_vec())
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let from = end + 2;
        body.extend_from_slice(rest.get(from..from.checked_add(size)?)?);
        rest = rest.get(from + size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_plain_or_chunked() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4;x=y\r\n\":1}\r\n0\r\n\r\n";
        assert_eq!(body(b"HTTP/1.0 200 OK\r\na: b\r\n\r\n{}").unwrap(), b"{}");
        assert_eq!(body(chunked).unwrap(), b"{\"a\":1}");
        for bad in [
            &b"HTTP/1.1 404 Not Found\r\n\r\n{}"[..],
            b"HTTP/1.1 302 Found\r\nlocation: x\r\n\r\n",
            b"hello",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nab",
        ] {
            assert!(body(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
