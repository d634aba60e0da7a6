//! Programs of the SDKs over TLS, with a token that a credential of the SDK hands out.

use std::fs;
use std::sync::LazyLock;

use super::security;
use super::suite::{Sdk, Server, run_on, skipped};

/// A server that speaks TLS and knows callers by their tokens, and what a program needs to be one of them.
static SECURED: LazyLock<Secured> = LazyLock::new(Secured::start);

struct Secured {
    server: Server,
    variables: Vec<(&'static str, String)>,
    _folder: tempfile::TempDir,
}

impl Secured {
    fn start() -> Secured {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let ca = security::Ca::new("sdk");
        let ca_file = ca.write(&folder.path().join("ca.pem")).display().to_string();
        let pair = ca.issue(folder.path(), "server", &["localhost"], "server");
        let signer = security::Signer::new("one");
        let keys = folder.path().join("keys.json");
        fs::write(&keys, security::key_set(&[&signer])).expect("a writable folder");
        let mut server = Server::alone(&[
            &format!("--tls-cert-file={}", pair.cert.display()),
            &format!("--tls-key-file={}", pair.key.display()),
            "--tls-plaintext=never",
            // The test itself asks for readiness in plain HTTP.
            "--tls-http=false",
            "--auth-mode=jwt",
            &format!("--auth-jwt-jwks-file={}", keys.display()),
            &format!("--auth-jwt-issuer={}", security::ISSUER),
            &format!("--auth-jwt-audience={}", security::AUDIENCE),
            "--auth-grants=claim.role:app=contributor@*",
        ])
        .unwrap_or_else(|why| panic!("{why}"));
        server.grpc = server.grpc.replace("127.0.0.1", "localhost");
        let token =
            signer.token(&serde_json::json!({ "role": "app", "exp": security::now() + 7200 }));
        // Both gRPC libraries take the certificates that they trust from there.
        let variables =
            vec![("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", ca_file), ("DURAHUB_TEST_TOKEN", token)];
        Secured { server, variables, _folder: folder }
    }
}

mod over_tls_with_a_token {
    use std::process::Command;

    use super::*;

    fn run(sdk: &Sdk, programs: &[&str]) {
        if skipped() {
            return;
        }
        sdk.install();
        for program in programs {
            run_on(sdk, program, &SECURED.server, &SECURED.variables);
        }
    }

    #[test]
    fn python() {
        run(&Sdk::python(), &["chain", "retry", "event_or_timer", "queries", "entity_operations"]);
    }

    #[test]
    fn javascript() {
        run(
            &Sdk::javascript(),
            &["chain", "retry", "event_or_timer", "queries", "entity_operations"],
        );
    }

    /// The token is what lets them in.
    #[test]
    fn without_it_nobody_gets_in() {
        let grpc = &SECURED.server.grpc;
        let output = Command::new(env!("CARGO_BIN_EXE_durahub"))
            .args(["instance", "list", "--task-hub", "default", "--endpoint"])
            .arg(format!("https://{grpc}"))
            .env("DURAHUB_CA_FILE", &SECURED.variables[0].1)
            .output()
            .expect("the binary runs");
        assert_eq!(output.status.code(), Some(6), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
