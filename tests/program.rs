//! The program as an operator meets it: the real binary, its messages, exit codes and signals.
//!
//! Every node runs on free ports (`…:0`) and tells the addresses it got in the log line `listening`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than any start or stop takes, on a machine that also builds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The binary in an empty folder, with none of the caller's settings and with ports of its own.
fn durahub(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_durahub"));
    command.current_dir(folder).stdin(Stdio::null());
    for (name, _) in std::env::vars()
        .filter(|(name, _)| name.starts_with("DURAHUB_") || name.starts_with("DTS_"))
    {
        command.env_remove(name);
    }
    for port in ["GRPC", "HTTP", "PEER"] {
        command.env(format!("DURAHUB_{port}_ADDR"), "127.0.0.1:0");
    }
    command.env("DURAHUB_LOG_FORMAT", "json").env_remove("RUST_BACKTRACE");
    command
}

/// Runs a command that must fail on its own, and gives its message: the part after `error: `.
fn failure(command: &mut Command) -> String {
    let output = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let messages: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(messages.len(), 1, "one message expected:\n{text}");
    text[text.find("error: ").unwrap() + 7..].to_owned()
}

fn finish(mut child: Child) -> Output {
    wait(&mut child);
    child.wait_with_output().unwrap()
}

fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("the process did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A node that listens; killed when dropped.
struct Node {
    child: Child,
    log: BufReader<ChildStderr>,
    addresses: BTreeMap<&'static str, String>,
}

impl Node {
    fn start(command: &mut Command) -> Node {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut node = Node { child, log, addresses: BTreeMap::new() };
        let mut all = String::new();
        while node.addresses.is_empty() {
            let mut line = String::new();
            assert!(
                node.log.read_line(&mut line).unwrap() > 0,
                "the node ended before it listened:\n{all}"
            );
            all += &line;
            let event = serde_json::from_str(&line).unwrap_or(serde_json::Value::Null);
            if event["message"] == "listening" {
                let address = |name: &'static str| (name, event[name].as_str().unwrap().to_owned());
                node.addresses = ["grpc", "http", "peer"].map(address).into();
            }
        }
        node
    }

    fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Body of a page, or the reason why there is none.
    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.addresses["http"])?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Waits until a page starts with a text.
    fn await_page(&self, path: &str, text: &str) {
        let start = Instant::now();
        loop {
            let page = self.get(path);
            if page.as_ref().is_ok_and(|page| page.starts_with(text)) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{path} is {page:?}, not {text:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end, and gives the exit status and what was logged since the start.
    fn end(&mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (status, log)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn a_port_in_use_is_one_clear_message_and_touches_nothing() {
    for flag in ["grpc-addr", "http-addr", "peer-addr"] {
        let folder = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap().to_string();
        let message = failure(durahub(folder.path()).args([format!("--{flag}"), addr.clone()]));
        for part in [addr.as_str(), flag, "in use"] {
            assert!(message.contains(part), "{part:?} is missing in: {message}");
        }
        assert!(is_empty(folder.path()));
    }
}

/// Other nodes that call one which is still starting are refused at once: none waits for a greeting.
#[test]
fn nobody_listens_at_the_peer_port_of_a_node_that_is_not_up() {
    let folder = tempfile::tempdir().unwrap();
    // An address of this machine that nothing else uses.
    let peer = TcpListener::bind("127.77.0.1:0").unwrap().local_addr().unwrap();
    let mut child = durahub(folder.path())
        .args(["--peer-addr", &peer.to_string(), "--join", "127.77.0.2:9"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let mut node = Node { child, log, addresses: BTreeMap::new() };
    let mut lines = node.log.by_ref().lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("no member lets this node join yet")));
    let connected = TcpStream::connect(peer);
    assert!(node.child.try_wait().unwrap().is_none(), "it still starts");
    assert_eq!(connected.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_data_folder_that_cannot_be_written_is_one_clear_message() {
    let folder = tempfile::tempdir().unwrap();
    // Also root cannot make a folder below a file.
    std::fs::write(folder.path().join("file"), "").unwrap();
    let message = failure(durahub(folder.path()).args(["--data-dir", "file/data"]));
    assert!(message.contains("file/data"), "{message}");
}

#[test]
fn a_bad_configuration_lists_every_problem_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for command in [&["serve"][..], &["config", "check"], &[]] {
        let flags = ["--partitions", "0", "--task-hubs", "a b"];
        let message = failure(
            durahub(folder.path()).args(command).args(flags).env("DURAHUB_NODE_ID", "first"),
        );
        for part in [
            "partitions",
            "\"0\"",
            "1 to 128",
            "task_hubs",
            "\"a b\"",
            "node_id",
            "DURAHUB_NODE_ID",
            "3 problems",
        ] {
            assert!(message.contains(part), "{part:?} is missing in: {message}");
        }
    }
    let message = failure(durahub(folder.path()).args(["--config", "missing.toml"]));
    assert!(message.contains("missing.toml"), "{message}");
    assert!(is_empty(folder.path()));
}

/// What a start would meet in the files of certificates, keys and tokens, the check tells as well, and both tell all.
#[test]
fn files_that_cannot_be_used_are_told_together_by_the_check_and_by_the_start() {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("cert.pem", "no certificate"),
        ("tokens.toml", "[[token]]\nname = 'a'\nsha256 = 'secret'\n"),
        ("grants.toml", "grants = ['a']\n"),
        ("keys.json", "{}"),
        ("headers", "secret\n"),
    ] {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let settings = "[tls]\ncert_file = 'cert.pem'\nkey_file = 'none.key'\n\
        [peer_tls]\ncert_file = 'cert.pem'\nkey_file = 'none.key'\nca_file = 'none.ca'\n\
        [auth]\nmode = ['token', 'jwt']\ntokens_file = 'tokens.toml'\ngrants_file = 'grants.toml'\n\
        [auth.jwt]\njwks_file = 'keys.json'\nissuer = 'i'\naudience = ['a']\n\
        [audit]\nfile = 'none/audit'\n\
        [tracing]\nendpoint = 'https://localhost:1'\nca_file = 'none.pem'\nheaders_file = 'headers'\n";
    std::fs::write(folder.path().join("durahub.toml"), settings).unwrap();
    let config = ["--config", "durahub.toml"];
    for command in [&["config", "check"][..], &["serve"]] {
        let message = failure(durahub(folder.path()).args(command).args(config));
        for part in [
            "tls.cert_file",
            "cert.pem: holds no certificate",
            "none.key: cannot be read",
            "peer_tls",
            "none.ca",
            "tokens.toml: token \"a\"",
            "grants.toml: \"a\" is not WHO=ROLE@HUB",
            "keys.json",
            "audit.file",
            "tracing.ca_file",
            "headers: line 1",
            "8 parts of the configuration",
        ] {
            assert!(message.contains(part), "{command:?}: {part:?} is missing in: {message}");
        }
        assert!(!message.contains("secret"), "{message}");
    }
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 6, "nothing is created: {files:?}");
    // Where the files are on another machine, the settings alone can be judged.
    let line = ["config", "check", "--without-files", "--config", "durahub.toml"];
    let output = finish(durahub(folder.path()).args(line).stdout(Stdio::piped()).spawn().unwrap());
    assert!(output.status.success());
}

#[test]
fn what_config_check_prints_is_a_configuration_file() {
    let folder = tempfile::tempdir().unwrap();
    let check = |file: Option<&str>| {
        let mut command = durahub(folder.path());
        command.args(["config", "check", "--partitions", "3"]);
        file.map(|file| command.args(["--config", file]));
        let output = finish(command.stdout(Stdio::piped()).spawn().unwrap());
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let printed = check(None);
    assert!(printed.contains("\npartitions = 3\n"), "{printed}");
    std::fs::write(folder.path().join("durahub.toml"), &printed).unwrap();
    assert_eq!(check(Some("durahub.toml")), printed);
}

#[test]
fn sigterm_and_ctrl_c_drain_and_exit_with_0() {
    for signal in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut node = Node::start(&mut durahub(folder.path()));
        node.await_page("/readyz", "ready");
        assert_eq!(node.get("/livez").unwrap(), "alive\n");
        node.signal(signal);
        let (status, log) = node.end();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("draining"), "{log}");
    }
}

#[test]
fn a_stopped_node_starts_again_on_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut node = Node::start(durahub(folder.path()).arg("serve"));
        node.await_page("/readyz", "ready");
        node.signal("TERM");
        assert!(node.end().0.success());
    }
    assert!(folder.path().join("durahub-data").is_dir());
}

#[test]
fn an_ephemeral_node_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start(durahub(folder.path()).arg("--ephemeral"));
    node.await_page("/readyz", "ready");
    node.signal("TERM");
    assert!(node.end().0.success());
    assert!(is_empty(folder.path()));
}

#[test]
fn metrics_and_the_start_page_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(durahub(folder.path()).arg("--ephemeral"));
    node.await_page("/readyz", "ready");
    assert!(node.get("/metrics").unwrap().contains("durahub_build_info{version="));
    assert!(node.get("/").unwrap().contains(&node.addresses["grpc"]));
    assert!(node.get("/health").unwrap().contains("\"status\":\"ready\""));
}
