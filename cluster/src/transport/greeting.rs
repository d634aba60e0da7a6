//! A connection of HTTP/2 begins with 24 bytes that are always the same. Whoever has not sent them in time keeps no
//! place, however little it sends at a time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::Sleep;

/// Bytes that a connection of HTTP/2 begins with.
const PREFACE: usize = 24;

/// The beginning of a connection, until it has come. The default waits for none.
#[derive(Default)]
pub struct Greeting(Option<Awaited>);

struct Awaited {
    missing: usize,
    until: Pin<Box<Sleep>>,
}

impl Greeting {
    /// It has to come within this time, from now on.
    pub fn within(time: Duration) -> Greeting {
        let until = Box::pin(tokio::time::sleep(time));
        Greeting(Some(Awaited { missing: PREFACE, until }))
    }

    /// Reads by `read`, and fails when the time is over.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        read: impl FnOnce(&mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        let Some(awaited) = &mut self.0 else { return read(cx, buf) };
        let before = buf.filled().len();
        let read = read(cx, buf);
        if read.is_pending() {
            ready!(awaited.until.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        awaited.missing = awaited.missing.saturating_sub(buf.filled().len() - before);
        if awaited.missing == 0 {
            self.0 = None;
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    struct Greeted(DuplexStream, Greeting);

    impl AsyncRead for Greeted {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Greeted(stream, greeting) = self.get_mut();
            greeting.poll_read(cx, buf, |cx, buf| Pin::new(stream).poll_read(cx, buf))
        }
    }

    #[tokio::test]
    async fn bytes_that_come_one_by_one_must_all_be_there_in_time() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Greeted(server, Greeting::within(Duration::from_millis(200)));
        // More bytes than are missing, and never enough in time.
        tokio::spawn(async move {
            for _ in 0..=PREFACE {
                if client.write_all(b"P").await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let mut read = Vec::new();
        let error = server.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((1..PREFACE).contains(&read.len()), "{read:?}");
    }

    #[tokio::test]
    async fn whoever_has_greeted_may_be_silent() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Greeted(server, Greeting::within(Duration::from_millis(200)));
        client.write_all(&[b'x'; PREFACE]).await.unwrap();
        server.read_exact(&mut [0; PREFACE]).await.unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(400)).await;
            client.write_all(b"y").await.unwrap();
        });
        assert_eq!(server.read_u8().await.unwrap(), b'y');
    }
}
