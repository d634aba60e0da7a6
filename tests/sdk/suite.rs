//! The programs of the public SDKs, how they are installed and run, and the server that they run against.
//!
//! Each program is one `#[test]` and has a task hub of its own, so they run side by side. One server (or one
//! cluster, behind a load balancer), started by the first test that needs it, serves them all.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::{NODES, ports};

/// How long the server may take to be ready; a debug build on a busy machine needs a second or two.
const START: Duration = Duration::from_secs(60);

/// One test per program, a check that none was forgotten, and the list of hubs that the server needs.
macro_rules! programs {
    ($($sdk:ident { $($program:ident)* })*) => {
        /// The task hubs of all programs; `default` is that of the base SDKs, which name none (R1.8).
        fn hubs() -> Vec<String> {
            let own = [$($(hub(stringify!($sdk), stringify!($program)),)*)*];
            std::iter::once("default".to_owned()).chain(own).collect()
        }

        $(mod $sdk {
            $(#[test]
            fn $program() {
                super::run(&super::Sdk::$sdk(), stringify!($program));
            })*

            #[test]
            fn every_program_has_a_test() {
                let tests = [$(stringify!($program)),*];
                super::check_list(&super::Sdk::$sdk(), &tests);
            }
        })*
    };
}

programs! {
    python {
        chain fan_out retry falsy large_payload oversize_history
        event_or_timer timers continue_as_new scheduled_start
        suspend_resume terminate custom_status id_reuse tags_and_version
        concurrent_workers worker_killed
        queries purges task_hubs
        sub_orchestrations sub_orchestration_failure events_between terminate_tree rewind restart
        entity_operations entity_failures entity_locks entity_delays entity_actions entity_queries schedules history_export
        unknown_hub base_sdk
    }
    javascript {
        chain fan_out retry falsy large_payload
        event_or_timer timers continue_as_new scheduled_start
        suspend_resume terminate custom_status id_reuse tags_and_version
        concurrent_workers worker_killed
        queries purges
        sub_orchestrations sub_orchestration_failure events_between terminate_tree rewind restart
        entity_operations entity_failures entity_locks entity_delays entity_actions
        unknown_hub
    }
}

fn hub(sdk: &str, program: &str) -> String {
    format!("{sdk}-{program}").replace('_', "-")
}

/// Runs one program to its `ok`, or fails with all that it and the server had to say.
fn run(sdk: &Sdk, program: &str) {
    if skipped() {
        return;
    }
    sdk.install();
    let server = SERVER.as_ref().unwrap_or_else(|why| panic!("{why}"));
    run_on(sdk, program, server, &[]);
}

/// The same on a server of one's own choice, with more variables in the environment of the program.
pub(crate) fn run_on(sdk: &Sdk, program: &str, server: &Server, variables: &[(&str, String)]) {
    let mut command = sdk.command();
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.args([program, "--endpoint", &server.grpc, "--task-hub", &hub(sdk.name, program)]);
    // A proxy that the environment names is not for this server.
    command.env("no_proxy", "127.0.0.1,localhost").env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.stdin(Stdio::null()).output().expect("the interpreter runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.lines().any(|line| line == format!("ok {program}")),
        "{} program `{program}` failed with {}\n--- it said\n{said}\n{complained}\n--- the end of the server's log {}\n{}",
        sdk.name,
        output.status,
        server.log.display(),
        tail(&server.log)
    );
}

/// A program that nobody runs shows nothing.
fn check_list(sdk: &Sdk, tests: &[&str]) {
    if skipped() {
        return;
    }
    sdk.install();
    let output = sdk.command().arg("--list").output().expect("the interpreter runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout).expect("names are text");
    assert_eq!(sorted(listed.lines()), sorted(tests.iter().copied()), "programs and tests");
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

pub(crate) fn skipped() -> bool {
    let skipped = std::env::var_os("DURAHUB_SKIP_SDK").is_some_and(|value| value == "1");
    if skipped {
        eprintln!("skipped: DURAHUB_SKIP_SDK=1");
    }
    skipped
}

/// One language: where its programs are and how they are run.
pub(crate) struct Sdk {
    name: &'static str,
    /// Files that decide what is installed.
    pins: &'static [&'static str],
    script: &'static str,
    interpreter: &'static str,
    /// Arguments with which the interpreter tells its version, or fails when it is too old.
    check: &'static [&'static str],
    /// What to do about a missing or old one.
    remedy: &'static str,
    setup: fn(&Sdk, &Path),
}

impl Sdk {
    pub(crate) fn python() -> Sdk {
        Sdk {
            name: "python",
            pins: &["requirements.txt"],
            script: "programs.py",
            interpreter: "python3",
            check: &[
                "-c",
                "import sys, venv, ensurepip; assert sys.version_info >= (3, 10); print(sys.version)",
            ],
            remedy: "install Python 3.10 or newer with venv (Debian: apt-get install python3 python3-venv)",
            setup: set_up_python,
        }
    }

    pub(crate) fn javascript() -> Sdk {
        Sdk {
            name: "javascript",
            pins: &["package.json", "package-lock.json"],
            script: "programs.mjs",
            interpreter: "node",
            check: &["-p", "assert(parseInt(process.versions.node) >= 20); process.version"],
            remedy: "install node 20 or newer with npm (Debian: apt-get install nodejs npm)",
            setup: set_up_javascript,
        }
    }

    fn sources(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(self.name)
    }

    /// `target/sdk/NAME`, whatever folder `target` is.
    fn home(&self) -> PathBuf {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp is inside target");
        target.join("sdk").join(self.name)
    }

    /// The interpreter with the SDK at hand and the script of programs as its first argument.
    fn command(&self) -> Command {
        let inside = self.home().join("bin").join(self.interpreter);
        let mut command =
            Command::new(if inside.exists() { inside } else { self.interpreter.into() });
        // The JavaScript programs look for their modules in the working directory.
        command.current_dir(self.home()).arg(self.sources().join(self.script));
        command
    }

    /// Installs the SDK unless exactly this is installed already. Tests of this and other processes take turns.
    pub(crate) fn install(&self) {
        let home = self.home();
        fs::create_dir_all(home.parent().expect("inside target")).expect("target is writable");
        let lock = File::create(home.with_extension("lock")).expect("target is writable");
        lock.lock().expect("the lock can be taken");
        // Asked every time: an interpreter may have gone, or be another one than at the installation.
        let version = step(Command::new(self.interpreter).args(self.check), self.remedy);
        let wanted = self.pins.iter().fold(version, |wanted, pin| wanted + &self.read(pin));
        let stamp = home.join("installed");
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return;
        }
        let _ = fs::remove_dir_all(&home);
        (self.setup)(self, &home);
        fs::write(stamp, wanted).expect("target is writable");
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.sources().join(file)).expect("the pins are readable")
    }
}

fn set_up_python(sdk: &Sdk, home: &Path) {
    step(Command::new("python3").args(["-m", "venv"]).arg(home), sdk.remedy);
    let mut pip = Command::new(home.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement"]);
    step(pip.arg(sdk.sources().join("requirements.txt")), "PyPI must be reachable through pip");
    // Every package is pinned; this finds one that is missing from the list.
    step(Command::new(home.join("bin/pip")).arg("check"), "requirements.txt must be complete");
}

fn set_up_javascript(sdk: &Sdk, home: &Path) {
    step(Command::new("npm").arg("--version"), sdk.remedy);
    fs::create_dir_all(home).expect("target is writable");
    for pin in sdk.pins {
        fs::copy(sdk.sources().join(pin), home.join(pin)).expect("target is writable");
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(home);
    step(&mut npm, "the npm registry must be reachable through npm");
}

/// One step of an installation; says what to do when it does not work, and gives what it printed.
fn step(command: &mut Command, remedy: &str) -> String {
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => panic!(
            "{command:?} failed: {remedy}, or set DURAHUB_SKIP_SDK=1\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!("{command:?}: {error}: {remedy}, or set DURAHUB_SKIP_SDK=1"),
    }
}

/// The one server, or cluster, of this test process.
static SERVER: LazyLock<Result<Server, String>> = LazyLock::new(Server::start);

pub(crate) struct Server {
    pub(crate) grpc: String,
    log: PathBuf,
    /// Their standard inputs are held by this process and nobody else: when they close, however this process
    /// ends, the leashes kill the nodes. A static is never dropped, so nothing else would.
    _leashes: Vec<Child>,
}

/// Runs a server in the folder `$1` until it ends, or until the standard input does.
const LEASH: &str = r#"
folder=$1; shift
exec 3<&0
"$@" --data-dir "$folder/data" >"$folder/log" 2>&1 3<&- &
server=$!
{ cat <&3 >/dev/null; touch "$folder/over"; kill -9 $server; } &
watcher=$!
exec 3<&-
wait $server
if [ -e "$folder/over" ]; then rm -rf "$folder"; else kill $watcher; fi
"#;

impl Server {
    /// One node, with more arguments than all have.
    pub(crate) fn alone(more: &[&str]) -> Result<Server, String> {
        let any = "127.0.0.1:0";
        let mut node = Node::launch(any, any, more)?;
        let (grpc, _) = node.wait()?;
        Ok(Server { grpc, log: node.log, _leashes: vec![node.leash] })
    }

    fn start() -> Result<Server, String> {
        if NODES == 1 {
            return Server::alone(&[]);
        }
        let ports: Vec<String> = (0..2 * NODES).map(|_| ports::free().to_string()).collect();
        let (grpc, peers) = ports.split_at(NODES);
        let list = peers.iter().enumerate().map(|(n, peer)| format!("{}={peer}", n + 1));
        let list = list.collect::<Vec<_>>().join(",");
        let nodes = grpc.iter().zip(peers).enumerate().map(|(n, (grpc, peer))| {
            let id = (n + 1).to_string();
            let more = ["--node-id", &id, "--initial-cluster", &list, "--partitions", "4"];
            Node::launch(grpc, peer, &more)
        });
        let mut nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        for node in &mut nodes {
            node.wait()?;
        }
        spread_leaders(&peers[0])?;
        let log = nodes[0].log.clone();
        let grpc = balance(grpc.to_vec()).map_err(|error| error.to_string())?;
        let leashes = nodes.into_iter().map(|node| node.leash);
        Ok(Server { grpc, log, _leashes: leashes.collect() })
    }
}

/// A node that is starting.
struct Node {
    log: PathBuf,
    leash: Child,
}

impl Node {
    fn launch(grpc: &str, peer: &str, more: &[&str]) -> Result<Node, String> {
        let folder = tempfile::Builder::new().prefix("durahub-sdk-").tempdir();
        let folder = folder.map_err(|error| error.to_string())?.keep();
        let leash = Command::new("sh")
            .args(["-c", LEASH, "leash"])
            .arg(&folder)
            .args([env!("CARGO_BIN_EXE_durahub"), "--log-format", "json"])
            .args(["--grpc-addr", grpc, "--http-addr", "127.0.0.1:0", "--peer-addr", peer])
            .args(["--task-hubs", &hubs().join(",")])
            // Some programs pass more than the managed service takes (R1.26).
            .args(["--max-payload-bytes", "4MiB"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("sh: {error}"))?;
        Ok(Node { log: folder.join("log"), leash })
    }

    /// Waits until it serves; returns its addresses for SDKs and for HTTP.
    fn wait(&mut self) -> Result<(String, String), String> {
        let deadline = Instant::now() + START;
        loop {
            if let Some((grpc, http)) = listening(&self.log)
                && ready(&http)
            {
                return Ok((grpc, http));
            }
            if let Ok(Some(_)) = self.leash.try_wait() {
                return Err(format!("the server ended at once; its log:\n{}", tail(&self.log)));
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "the server was not ready within {START:?}; its log:\n{}",
                    tail(&self.log)
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Waits until leaders are where they stay: what moves meanwhile has its work handed out again, and programs that count
/// what their workers ran could not.
fn spread_leaders(peer: &str) -> Result<(), String> {
    let deadline = Instant::now() + START;
    loop {
        let mut status = Command::new(env!("CARGO_BIN_EXE_durahub"));
        status.args(["cluster", "status", "--output", "json"]);
        let output = status.args(["--endpoint", &format!("http://{peer}")]).output();
        let output = output.map_err(|error| error.to_string())?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
        let groups = status["partitions"].as_array().map_or(0, Vec::len) as u64;
        let leads = nodes.iter().map(|node| node["leads"].as_u64().unwrap_or(0));
        let spread = leads.clone().max().unwrap_or(0) - leads.clone().min().unwrap_or(0);
        if nodes.len() == NODES && groups > 0 && leads.sum::<u64>() == groups && spread <= 1 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("leaders do not spread: {status:#}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A load balancer: every connection goes to the next node, so that the worker and the client of one program are
/// at different gateways.
fn balance(nodes: Vec<String>) -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for (n, client) in listener.incoming().enumerate() {
            let (Ok(client), Ok(node)) = (client, TcpStream::connect(&nodes[n % nodes.len()]))
            else {
                continue;
            };
            for side in [&client, &node] {
                let _ = side.set_nodelay(true);
            }
            let ways = [(client.try_clone(), node.try_clone()), (Ok(node), Ok(client))];
            for (from, to) in ways {
                let (Ok(mut from), Ok(mut to)) = (from, to) else { continue };
                std::thread::spawn(move || {
                    // However one way ends, the other must not go on alone.
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                    let _ = from.shutdown(Shutdown::Both);
                });
            }
        }
    });
    Ok(address)
}

/// The addresses for SDKs and for HTTP, from the log line that tells them.
fn listening(log: &Path) -> Option<(String, String)> {
    let log = fs::read_to_string(log).ok()?;
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).find_map(
        |line: serde_json::Value| {
            let fields = if line["fields"].is_object() { &line["fields"] } else { &line };
            (fields["message"] == "listening").then(|| {
                Some((fields["grpc"].as_str()?.to_owned(), fields["http"].as_str()?.to_owned()))
            })?
        },
    )
}

/// Whether `GET /readyz` answers 200.
fn ready(http: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(http)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn tail(log: &Path) -> String {
    let text =
        fs::read_to_string(log).unwrap_or_else(|error| format!("{}: {error}", log.display()));
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
