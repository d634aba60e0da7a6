//! The real binary in a process of its own, on a folder and ports of its own.
//!
//! Its logs go to files in the folder; when a test fails, the end of the last one is shown. The process
//! dies with the [`TestServer`]. `DURAHUB_TEST_BINARY` names another binary to test, a release build for example.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::Client;
use super::ports;

/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lines of the log that a failing test shows.
const SHOWN_LINES: usize = 60;

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Arguments after the usual ones.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Task hubs; none leaves it to the server.
    pub task_hubs: Vec<String>,
    /// A command that runs the server in place of itself, as `nsenter` and `sh -c 'exec "$@"'` do; with its
    /// arguments, the server's command line behind them.
    pub within: Vec<String>,
}

/// The addresses that the server bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// SDK clients and workers.
    pub grpc: SocketAddr,
    /// Dashboard, REST, health, metrics.
    pub http: SocketAddr,
    /// Other nodes.
    pub peer: SocketAddr,
}

impl Addresses {
    /// Three that no other server of this process has had.
    fn free() -> Addresses {
        Addresses { grpc: ports::free(), http: ports::free(), peer: ports::free() }
    }
}

/// A running server.
pub struct TestServer {
    options: ServerOptions,
    folder: tempfile::TempDir,
    process: Option<Child>,
    /// Where it listens now; a restart may change it.
    pub addresses: Addresses,
    starts: u32,
}

impl TestServer {
    /// Starts a server with default options and waits until it is ready.
    pub async fn start() -> TestServer {
        TestServer::start_with(ServerOptions::default()).await
    }

    /// Starts a server with more arguments and waits until it is ready.
    pub async fn start_with_args(args: &[&str]) -> TestServer {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        TestServer::start_with(ServerOptions { args, ..Default::default() }).await
    }

    /// Starts a server and waits until it is ready.
    pub async fn start_with(options: ServerOptions) -> TestServer {
        let mut server = TestServer {
            options,
            folder: tempfile::tempdir().expect("a temporary folder"),
            process: None,
            addresses: Addresses::free(),
            starts: 0,
        };
        server.launch(server.addresses).await;
        server
    }

    /// A client without a task hub header. After a restart on other ports ask for a new one.
    pub fn client(&self) -> Client {
        Client::new(self.addresses.grpc)
    }

    /// A client of this task hub.
    pub fn client_in(&self, task_hub: &str) -> Client {
        self.client().in_hub(task_hub)
    }

    /// The data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The log of the current process.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The logs of all processes so far.
    pub fn logs(&self) -> String {
        let path = |start| self.folder.path().join(format!("server-{start}.log"));
        (0..=self.starts).filter_map(|start| std::fs::read_to_string(path(start)).ok()).collect()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    /// Kills the process at once, as `kill -9` does.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill the server");
            process.wait().expect("reap the server");
        }
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the server runs");
        wait(&mut process, "by itself").await
    }

    /// Asks the process to stop (SIGTERM) and waits until it has.
    pub async fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the server runs");
        // The standard library sends no signal but the one of `kill9`; every shell can.
        let signal = format!("kill -TERM {}", process.id());
        let sent = Command::new("sh").args(["-c", &signal]).status().expect("run a shell");
        assert!(sent.success(), "could not signal the server");
        wait(&mut process, "of SIGTERM").await
    }

    /// Starts again on the same folder and on other ports, killing the process if it still runs.
    pub async fn restart(&mut self) {
        self.kill9();
        self.launch(Addresses::free()).await;
    }

    /// Starts again on the same folder and ports, so that clients find their way back.
    pub async fn restart_same_ports(&mut self) {
        self.kill9();
        self.launch(self.addresses).await;
    }

    /// What later starts use in place of the present options.
    pub fn set_options(&mut self, options: ServerOptions) {
        self.options = options;
    }

    /// `GET` on the HTTP port: status and body.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn http_get(&self, path: &str) -> std::io::Result<(u16, String)> {
        http_get(self.addresses.http, path).await
    }

    /// The command line of the next start, for a test that expects it to fail.
    pub fn command(&self) -> Command {
        self.command_on(self.addresses)
    }

    fn command_on(&self, at: Addresses) -> Command {
        let other = std::env::var_os("DURAHUB_TEST_BINARY");
        let program = other.unwrap_or_else(|| env!("CARGO_BIN_EXE_durahub").into());
        let mut words = self.options.within.iter().map(Into::into).chain([program]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .arg("serve")
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--grpc-addr", &at.grpc.to_string()])
            .args(["--http-addr", &at.http.to_string()])
            .args(["--peer-addr", &at.peer.to_string()])
            .args(["--log-format", "json"])
            .current_dir(self.folder.path());
        if !self.options.task_hubs.is_empty() {
            command.args(["--task-hubs", &self.options.task_hubs.join(",")]);
        }
        command.args(&self.options.args).envs(self.options.env.iter().cloned());
        command
    }

    async fn launch(&mut self, at: Addresses) {
        self.starts += 1;
        let log = File::create(self.log_path()).expect("create the log file");
        let errors = log.try_clone().expect("share the log file");
        let process = self.command_on(at).stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        self.process = Some(process.expect("start the server"));
        let until = Instant::now() + PATIENCE;
        self.addresses = loop {
            if let Some(addresses) = self.log().lines().find_map(listening) {
                break addresses;
            }
            self.keep_waiting(until, "listen").await;
        };
        while !matches!(self.http_get("/readyz").await, Ok((200, _))) {
            self.keep_waiting(until, "become ready").await;
        }
    }

    async fn keep_waiting(&mut self, until: Instant, what: &str) {
        let process = self.process.as_mut().expect("just started");
        if let Some(status) = process.try_wait().expect("ask for the server's status") {
            panic!("the server did not {what}: it ended with {status}");
        }
        assert!(Instant::now() < until, "the server did not {what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join(format!("server-{}.log", self.starts))
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_end(&self.log_path());
        }
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself; the folder goes away in any case.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

async fn wait(process: &mut Child, why: &str) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().expect("ask for the server's status") {
            return status;
        }
        if Instant::now() > until {
            process.kill().expect("kill the server");
            process.wait().expect("reap the server");
            panic!("the server did not end {why} within {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn show_end(log: &Path) {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    eprintln!("--- end of {} ---", log.display());
    for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
        eprintln!("{line}");
    }
    eprintln!("--- {} lines in all ---", lines.len());
}

/// Reads the log line that says where the server listens; any other line is `None`.
pub fn listening(line: &str) -> Option<Addresses> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    // Fields stand below `fields` or, in the flattened form, beside the message.
    let fields = line.get("fields").unwrap_or(&line);
    if fields.get("message")?.as_str()? != "listening" {
        return None;
    }
    let address = |name: &str| fields.get(name)?.as_str()?.parse().ok();
    Some(Addresses { grpc: address("grpc")?, http: address("http")?, peer: address("peer")? })
}

/// A plain HTTP/1.1 `GET`: status and body.
///
/// # Errors
/// When nobody answers, or with something else than HTTP.
pub async fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut socket = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other("not an HTTP answer"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}
