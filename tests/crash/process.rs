//! The server as a process: start, kill -9, start again on the same folder and addresses.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::{Channel, Endpoint};

use crate::ports;

/// How long a start may take: the log of some seconds of load is replayed, by a debug build.
const START: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    folder: Option<tempfile::TempDir>,
    grpc: String,
    http: String,
    peer: String,
    child: Option<Child>,
}

impl Server {
    /// A folder and three free addresses; nothing runs yet.
    pub(crate) fn prepare() -> anyhow::Result<Server> {
        let [grpc, http, peer] = std::array::from_fn(|_| ports::free().to_string());
        let folder = tempfile::Builder::new().prefix("durahub-crash-").tempdir()?;
        Ok(Server { folder: Some(folder), grpc, http, peer, child: None })
    }

    /// A channel that connects when it is used, and again when the connection is lost.
    pub(crate) fn channel(&self) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc))?;
        Ok(endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy())
    }

    /// Starts the server and waits until it is ready.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let child = Command::new(env!("CARGO_BIN_EXE_durahub"))
            .args(["--log-format", "json", "--task-hubs", "default"])
            .args(["--grpc-addr", &self.grpc, "--http-addr", &self.http, "--peer-addr", &self.peer])
            .arg("--data-dir")
            .arg(self.folder().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let deadline = Instant::now() + START;
        while !self.ready().await {
            self.check_alive()?;
            if Instant::now() > deadline {
                bail!("not ready within {START:?}; its log ends\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// SIGKILL, and the process is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.check_alive()?;
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Waits for something that a dead server would never let happen.
    pub(crate) async fn while_alive<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> anyhow::Result<T> {
        let mut work = std::pin::pin!(work);
        let deadline = Instant::now() + START;
        loop {
            if let Ok(done) = tokio::time::timeout(Duration::from_millis(100), &mut work).await {
                return Ok(done);
            }
            self.check_alive()?;
            if Instant::now() > deadline {
                bail!("no progress within {START:?}; the server's log ends\n{}", self.log_tail());
            }
        }
    }

    /// Leaves folder and log behind for whoever looks into a failure.
    pub(crate) fn keep(&mut self) -> PathBuf {
        self.folder.take().map(tempfile::TempDir::keep).unwrap_or_default()
    }

    /// Only `kill` may end the process: a server that ends by itself, a panic included, is a failure.
    fn check_alive(&mut self) -> anyhow::Result<()> {
        let ended = self.child.as_mut().context("the server runs")?.try_wait()?;
        if let Some(status) = ended {
            bail!("the server ended by itself with {status}; its log ends\n{}", self.log_tail());
        }
        Ok(())
    }

    async fn ready(&self) -> bool {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(&self.http).await?;
            let request =
                format!("GET /readyz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(2), ask).await;
        matches!(answer, Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200"))
    }

    fn folder(&self) -> &Path {
        self.folder.as_ref().map_or_else(|| Path::new(""), tempfile::TempDir::path)
    }

    fn log(&self) -> PathBuf {
        self.folder().join("log")
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
