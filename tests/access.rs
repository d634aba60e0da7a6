//! Who may do what, and over which connections: the real binary with certificates, tokens and grants.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "access/audit.rs"]
mod audit;
#[path = "access/calls.rs"]
mod calls;
#[path = "access/commands.rs"]
mod commands;
#[path = "access/connections.rs"]
mod connections;
#[path = "access/late.rs"]
mod late;
#[path = "access/limits.rs"]
mod limits;
#[path = "access/matrix.rs"]
mod matrix;
#[path = "access/rotation.rs"]
mod rotation;
#[path = "access/scaler.rs"]
mod scaler;
#[path = "access/sending.rs"]
mod sending;
#[path = "access/standing.rs"]
mod standing;
#[path = "access/tokens.rs"]
mod tokens;
#[path = "access/transport.rs"]
mod transport;
#[path = "access/unread.rs"]
mod unread;

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::security::{AUDIENCE, Ca, ISSUER, Pair, Signer, channel, key_set};
use support::server::ServerOptions;
use support::{Client, TestServer};
use tonic::transport::Channel;

/// A server with TLS and all ways to say who one is, and what callers need.
pub(crate) struct Guarded {
    pub(crate) server: TestServer,
    pub(crate) folder: tempfile::TempDir,
    /// Signs the certificates of the server and of clients.
    pub(crate) ca: Ca,
    pub(crate) ca_file: PathBuf,
    pub(crate) server_pair: Pair,
    pub(crate) signer: Signer,
    /// Static tokens, by name.
    pub(crate) tokens: Vec<(String, String)>,
}

/// Roles, and the name under which each has its grant in the task hub `a`.
pub(crate) const ROLES: [&str; 4] = ["reader", "worker", "contributor", "admin"];

impl Guarded {
    /// Starts it with two task hubs, `a` and `b`. Tokens `reader`, `worker`, `contributor` and `admin` have that
    /// role in `a`; `root` is admin of all hubs, `watcher` reader of all; `nobody` has no role; `other` is admin
    /// of `b`. JSON Web Tokens get the same by the claim `role`, certificates by their names.
    pub(crate) async fn start(more: &[&str]) -> Guarded {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let ca = Ca::new("clients and server");
        let ca_file = ca.write(&at("ca.pem"));
        let server_pair = ca.issue(folder.path(), "server", &["localhost", "127.0.0.1"], "server");
        let signer = Signer::new("one");
        std::fs::write(at("keys.json"), key_set(&[&signer])).unwrap();

        let roles = ROLES.map(|role| (role, vec![format!("{role}@a")]));
        let others = [
            ("root", vec!["admin@*".to_owned()]),
            ("watcher", vec!["reader@*".to_owned()]),
            ("nobody", vec![]),
            ("other", vec!["admin@b".to_owned()]),
        ];
        let (mut tokens, mut entries, mut rules) = (Vec::new(), String::new(), Vec::new());
        for (name, grants) in roles.into_iter().chain(others) {
            let (token, sha256) = durahub::access::new_token().unwrap();
            entries +=
                &format!("[[token]]\nname = '{name}'\nsha256 = '{sha256}'\ngrants = {grants:?}\n");
            tokens.push((name.to_owned(), token));
            for grant in grants {
                rules.push(format!("claim.role:{name}={grant}"));
                rules.push(format!("cert-{name}={grant}"));
            }
        }
        std::fs::write(at("tokens.toml"), entries).unwrap();
        std::fs::write(at("grants.toml"), format!("grants = {rules:?}\n")).unwrap();

        let path = |path: &Path| path.display().to_string();
        let mut args = vec![
            "--tls-cert-file".to_owned(),
            path(&server_pair.cert),
            "--tls-key-file".to_owned(),
            path(&server_pair.key),
            "--tls-client-ca-file".to_owned(),
            path(&ca_file),
            "--auth-mode=token,jwt,certificate".to_owned(),
            format!("--auth-tokens-file={}", path(&at("tokens.toml"))),
            format!("--auth-grants-file={}", path(&at("grants.toml"))),
            format!("--auth-jwt-jwks-file={}", path(&at("keys.json"))),
            format!("--auth-jwt-issuer={ISSUER}"),
            format!("--auth-jwt-audience={AUDIENCE}"),
            format!("--audit-file={}", path(&at("audit.jsonl"))),
        ];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let task_hubs = vec!["a".to_owned(), "b".to_owned()];
        let server =
            TestServer::start_with(ServerOptions { args, task_hubs, ..Default::default() });
        let server = server.await;
        Guarded { server, folder, ca, ca_file, server_pair, signer, tokens }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The static token of that name.
    pub(crate) fn token(&self, name: &str) -> &str {
        &self.tokens.iter().find(|(known, _)| known == name).unwrap().1
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.server.addresses.grpc.port())
    }

    /// A connection over TLS, with this certificate if any.
    pub(crate) fn channel(&self, identity: Option<&Pair>) -> Channel {
        channel(&self.url(), Some(&self.ca_file), identity)
    }

    /// A client of the hub `a` with a static token.
    pub(crate) fn client(&self, token: &str) -> Client {
        Client::over(self.channel(None)).in_hub("a").with_token(self.token(token))
    }

    /// Asks the server to read its files again.
    pub(crate) fn hang_up(&self) {
        let signal = format!("kill -HUP {}", self.server.pid());
        assert!(Command::new("sh").args(["-c", &signal]).status().unwrap().success());
    }

    /// Runs a command of the command line with these variables: exit code, output and errors.
    pub(crate) fn run(&self, line: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_durahub"));
        command
            .args(line)
            .env("DURAHUB_CA_FILE", &self.ca_file)
            .env("DURAHUB_ENDPOINT", self.url());
        command.envs(variables.iter().copied()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}
