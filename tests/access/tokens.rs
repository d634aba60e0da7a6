//! Tokens that are not right: each is refused with a sentence that says why, and nothing else is told.

use serde_json::json;
use tonic::Code;

use super::Guarded;
use super::support::Client;
use super::support::security::{Signer, now};

async fn refusal(guarded: &Guarded, token: &str) -> (Code, String) {
    let client = Client::over(guarded.channel(None)).in_hub("a").with_token(token);
    match client.rpc().hello(()).await {
        Ok(_) => (Code::Ok, String::new()),
        Err(status) => (status.code(), status.message().to_owned()),
    }
}

#[tokio::test]
async fn tokens_that_are_not_valid_are_refused_and_the_reason_is_told() {
    let guarded = Guarded::start(&["--auth-jwt-clock-skew=5s"]).await;
    let signer = &guarded.signer;
    assert_eq!(refusal(&guarded, &signer.token(&json!({}))).await.0, Code::Ok);
    // One of several audiences is enough; within the skew a token still counts.
    let several = json!({ "aud": ["x", super::AUDIENCE], "exp": now() - 1 });
    assert_eq!(refusal(&guarded, &signer.token(&several)).await.0, Code::Ok);

    let valid = signer.token(&json!({}));
    let parts: Vec<&str> = valid.split('.').collect();
    let same_name = Signer::new(&signer.kid);
    for (token, reason) in [
        (signer.token(&json!({ "exp": now() - 60 })), "expired"),
        (signer.token(&json!({ "nbf": now() + 60 })), "not valid yet"),
        (signer.token(&json!({ "aud": "another" })), "another audience"),
        (signer.token(&json!({ "iss": "https://another.test" })), "another issuer"),
        (signer.token(&json!({ "sub": "" })), "no claim sub"),
        (same_name.token(&json!({})), "signature"),
        (Signer::new("unknown").token(&json!({})), "not known here"),
        (format!("{}.{}.", parts[0], parts[1]), "signature"),
        // {"alg":"none"}
        (format!("eyJhbGciOiJub25lIn0.{}.", parts[1]), "no signed"),
        (format!("{}.{}", parts[0], parts[1]), "no signed"),
        ("not-a-token".to_owned(), "no signed"),
        (String::new(), "no signed"),
        ("x".repeat(20_000), "too long"),
    ] {
        let (code, text) = refusal(&guarded, &token).await;
        assert_eq!(code, Code::Unauthenticated, "{reason}: {text}");
        assert!(text.contains(reason), "{reason}: {text}");
        assert!(token.is_empty() || !text.contains(&token), "{text}");
    }
    let log = guarded.server.log();
    assert!(!log.contains(&valid) && !log.contains(parts[2]), "a token stands in the log");
    assert!(!log.contains(guarded.token("root")), "a token stands in the log");
}

#[tokio::test]
async fn an_ended_static_token_counts_no_more() {
    let guarded = Guarded::start(&[]).await;
    let (token, sha256) = durahub::access::new_token().unwrap();
    let entry = |expires: &str| {
        format!("[[token]]\nname='t'\nsha256='{sha256}'\ngrants=['admin@*']\nexpires={expires}\n")
    };
    let path = guarded.path("tokens.toml");
    for (expires, code) in
        [("2100-01-01T00:00:00Z", Code::Ok), ("2020-01-01T00:00:00Z", Code::Unauthenticated)]
    {
        std::fs::write(&path, entry(expires)).unwrap();
        guarded.hang_up();
        while refusal(&guarded, &token).await.0 != code {
            tokio::task::yield_now().await;
        }
    }
    assert!(refusal(&guarded, &token).await.1.contains("expired"));
    // A file that cannot be used changes nothing, and is told.
    std::fs::write(&path, entry("2100-01-01T00:00:00Z").replace("admin", "owner")).unwrap();
    guarded.hang_up();
    while !guarded.server.log().contains("owner@*") {
        tokio::task::yield_now().await;
    }
    assert_eq!(refusal(&guarded, &token).await.0, Code::Unauthenticated);
    assert_eq!(refusal(&guarded, guarded.token("root")).await.0, Code::Unauthenticated);
}
