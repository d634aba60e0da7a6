//! The command line over TLS, with a token or a certificate; and tokens that it makes.

use super::Guarded;
use super::support::TestServer;

#[tokio::test]
async fn commands_say_who_asks_and_hear_when_that_is_not_enough() {
    let guarded = Guarded::start(&[]).await;
    let token = |name: &str| guarded.token(name).to_owned();
    let file = guarded.path("token");
    std::fs::write(&file, format!("{}\n", token("contributor"))).unwrap();
    let file = file.display().to_string();
    let start = ["instance", "start", "--task-hub", "a", "--id", "x", "Hello"];
    let get = ["instance", "get", "--task-hub", "a", "x"];

    let (code, _, err) = guarded.run(&start, &[("DURAHUB_TOKEN_FILE", &file)]);
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = guarded.run(&get, &[("DURAHUB_TOKEN", &token("reader"))]);
    assert_eq!(code, 0, "{err}");

    for (line, variables, part) in [
        (&start[..], vec![("DURAHUB_TOKEN", token("reader"))], "role contributor"),
        (&get, vec![("DURAHUB_TOKEN", token("other"))], "role reader"),
        (&get, vec![], "no credentials"),
        (&get, vec![("DURAHUB_TOKEN", "wrong".to_owned())], "token"),
        (&["hub", "create", "c"], vec![("DURAHUB_TOKEN", token("admin"))], "role admin"),
    ] {
        let variables: Vec<_> = variables.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let (code, _, err) = guarded.run(line, &variables);
        assert_eq!(code, 6, "{line:?}: {err}");
        assert!(err.contains(part) && err.lines().count() == 1, "{line:?}: {err}");
    }
    // The peer port.
    let peer = format!("http://{}", guarded.server.addresses.peer);
    let status = ["cluster", "--endpoint", &peer, "status"];
    for (name, wanted) in [("root", 0), ("watcher", 0), ("admin", 6)] {
        let (code, _, err) = guarded.run(&status, &[("DURAHUB_TOKEN", &token(name))]);
        assert_eq!(code, wanted, "{name}: {err}");
    }
    let remove = ["cluster", "--endpoint", &peer, "remove-node", "1"];
    assert_eq!(guarded.run(&remove, &[("DURAHUB_TOKEN", &token("watcher"))]).0, 6);

    // By certificate.
    let pair = guarded.ca.issue(guarded.folder.path(), "cli", &[], "cert-reader");
    let (cert, key) = (pair.cert.display().to_string(), pair.key.display().to_string());
    let shown = [("DURAHUB_CERT_FILE", cert.as_str()), ("DURAHUB_KEY_FILE", key.as_str())];
    assert_eq!(guarded.run(&get, &shown).0, 0);
    assert_eq!(guarded.run(&start, &shown).0, 6);

    // The load generator, too: as the pod of `helm test` runs it.
    let endpoint = format!("--endpoint={}", guarded.url());
    let test = include_str!("../../deploy/helm/durahub/templates/tests/orchestration.yaml");
    let (_, args) = test.split_once("      args:\n").unwrap();
    let args = args.lines().map_while(|line| line.strip_prefix("        - "));
    let bench: Vec<&str> = args
        .map(|arg| match arg.split_once("{{").map_or(arg, |(name, _)| name) {
            "--endpoint=" => endpoint.as_str(),
            "--task-hub=" => "--task-hub=a",
            arg => arg,
        })
        .collect();
    assert!(bench.starts_with(&["bench", "sequence"]) && bench.len() > 5, "{bench:?}");
    let (code, out, err) = guarded.run(&bench, &[("DURAHUB_TOKEN_FILE", &file)]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("orchestrations"), "{out}");
    assert_ne!(guarded.run(&bench, &[("DURAHUB_TOKEN", &token("reader"))]).0, 0);
}

#[tokio::test]
async fn a_server_that_is_not_trusted_is_not_talked_to() {
    let guarded = Guarded::start(&[]).await;
    let token = guarded.token("root").to_owned();
    let other = super::Ca::new("other").write(&guarded.path("other.pem")).display().to_string();
    let list = ["hub", "list"];
    let (code, _, err) =
        guarded.run(&list, &[("DURAHUB_TOKEN", &token), ("DURAHUB_CA_FILE", &other)]);
    assert_eq!(code, 5, "{err}");
    assert!(err.contains("certificate"), "{err}");
}

#[tokio::test]
async fn a_token_is_made_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let run = |line: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_durahub")).args(line).output();
        let output = output.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, printed) = run(&["token", "new", "ci \"1\"", "--grants", "contributor@default"]);
    assert_eq!(code, 0);
    assert_eq!(run(&["token", "new", "x", "--grants", "owner@a"]).0, 2);
    let token = printed.lines().find(|line| line.starts_with("durahub_")).unwrap();
    let entry = &printed[printed.find("[[token]]").unwrap()..];
    assert!(!entry.contains(token));
    let path = folder.path().join("tokens.toml");
    std::fs::write(&path, entry).unwrap();
    let path = format!("--auth-tokens-file={}", path.display());
    let server = TestServer::start_with_args(&["--auth-mode=token", &path]).await;
    server.client().with_token(token).start("x", "X", "").await;
    assert!(server.client().with_token("durahub_other").rpc().hello(()).await.is_err());
}

/// The HTTP port has the certificate, too: whoever trusts it hears how the node is.
#[tokio::test]
async fn health_is_asked_over_tls() {
    let guarded = Guarded::start(&[]).await;
    let url = format!("https://localhost:{}", guarded.server.addresses.http.port());
    for more in [&[][..], &["--live"]] {
        let line = [&["health", "--endpoint", &url], more].concat();
        let (code, output, errors) = guarded.run(&line, &[]);
        assert_eq!(code, 0, "{output}{errors}");
        // A certificate of somebody else is not believed.
        let other = super::support::security::Ca::new("other").write(&guarded.path("other.pem"));
        let other = other.display().to_string();
        let (code, _, errors) = guarded.run(&line, &[("DURAHUB_CA_FILE", &other)]);
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains("certificate"), "{errors}");
    }
    let plain = url.replace("https:", "ftp:");
    let (code, _, errors) = guarded.run(&["health", "--endpoint", &plain], &[]);
    assert_eq!(code, 1);
    assert!(errors.contains("https://HOST:PORT"), "{errors}");
}
