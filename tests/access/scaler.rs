//! KEDA names the task hub in its request: the reader's role is asked for there, and a refusal is noted.

use std::time::Duration;

use serde_json::Value;
use tonic::{Code, Request, Status};

use super::support::scaler::{Rpc, metric, object};
use super::{Guarded, ROLES};

async fn judged(rpc: &mut Rpc, hub: &str, token: Option<&str>) -> Vec<Code> {
    let asked = object(hub, "Activity", "5");
    let with_token = |token: Option<&str>| {
        let mut request = Request::new(asked.clone());
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    };
    let code = |status: Status| status.code();
    vec![
        rpc.is_active(with_token(token)).await.map_or_else(code, |_| Code::Ok),
        rpc.get_metric_spec(with_token(token)).await.map_or_else(code, |_| Code::Ok),
        rpc.stream_is_active(with_token(token)).await.map_or_else(code, |_| Code::Ok),
    ]
}

#[tokio::test]
async fn readers_of_the_hub_may_ask_for_its_figures_and_nobody_else() {
    let guarded = Guarded::start(&[]).await;
    let mut rpc = Rpc::new(guarded.channel(None));
    for name in ROLES.into_iter().chain(["root", "watcher", "nobody", "other"]) {
        for hub in ["a", "b", "no-such-hub"] {
            let may = match name {
                "root" | "watcher" => true,
                "other" => hub == "b",
                "worker" | "nobody" => false,
                _ => hub == "a",
            };
            let wanted = match (may, hub) {
                (false, _) => Code::PermissionDenied,
                (true, "no-such-hub") => Code::NotFound,
                (true, _) => Code::Ok,
            };
            let found = judged(&mut rpc, hub, Some(guarded.token(name))).await;
            assert!(found.iter().all(|code| *code == wanted), "{name} in {hub}: {found:?}");
        }
    }
    let stranger = judged(&mut rpc, "a", None).await;
    assert!(stranger.iter().all(|code| *code == Code::Unauthenticated), "{stranger:?}");

    // What KEDA can show is a certificate.
    let pair = guarded.ca.issue(guarded.folder.path(), "keda", &[], "cert-reader");
    let mut keda = Rpc::new(guarded.channel(Some(&pair)));
    assert_eq!(metric(&mut keda, object("a", "Activity", "5")).await.unwrap(), 0);
    let other = metric(&mut keda, object("b", "Activity", "5")).await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
    assert!(other.message().contains("reader"), "{other}");

    let noted = async {
        loop {
            let text = std::fs::read_to_string(guarded.path("audit.jsonl")).unwrap();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut lines = lines.filter(|line| line["who"] == "cert-reader");
            if let Some(line) = lines.next() {
                return (line, lines.count());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (line, more) = tokio::time::timeout(Duration::from_secs(30), noted).await.unwrap();
    let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
    assert_eq!([text("what"), text("hub"), text("decision")], ["GetMetrics", "b", "denied"]);
    assert_eq!(more, 0, "what is allowed leaves no line");
}
