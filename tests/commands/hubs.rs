//! `durahub hub`.

use serde_json::json;

use crate::support::TestServer;
use crate::support::server::ServerOptions;
use crate::{Ran, run};

fn names(ran: &Ran) -> Vec<String> {
    let json = ran.json();
    let hubs = json["taskHubs"].as_array().unwrap().iter();
    hubs.map(|hub| hub["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn hubs_are_created_listed_and_deleted() {
    let server = TestServer::start().await;
    run(&server, &["hub", "create", "orders"]).await.code(0);
    run(&server, &["hub", "create", "orders"]).await.code(0);
    let listed = run(&server, &["hub", "list", "--output", "json"]).await.code(0);
    assert_eq!(names(&listed), ["default", "orders"]);
    let listed = run(&server, &["hub", "list"]).await.code(0).out;
    let lines: Vec<_> = listed.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("TASK HUB"), "{listed}");
    assert!(lines[2].starts_with("orders    20"), "with the time of its creation: {listed}");

    // How long ended instances stay: as configured, then as it is said.
    assert!(lines[2].contains("(off)"), "{listed}");
    let retention = ["hub", "retention", "orders"];
    let set = ["--completed", "7d", "--failed", "off"];
    run(&server, &[&retention[..], &set].concat()).await.code(0);
    let shown = run(&server, &[&retention[..], &["--output", "json"]].concat()).await.code(0);
    let times = &shown.json()["retention"];
    assert_eq!(times["completed"], json!({ "staysFor": "7days", "configured": false }));
    assert_eq!(times["failed"], json!({ "staysFor": "off", "configured": false }));
    assert_eq!(times["terminated"], json!({ "staysFor": "off", "configured": true }));
    run(&server, &[&retention[..], &["--completed", "default"]].concat()).await.code(0);
    let listed = run(&server, &["hub", "list", "--output", "json"]).await.code(0).json();
    assert_eq!(listed["taskHubs"][1]["retention"]["completed"]["configured"], true);
    run(&server, &[&retention[..], &["--failed", "never"]].concat()).await.code(2);
    let short = run(&server, &[&retention[..], &["--failed", "5ms"]].concat()).await.code(4);
    assert!(short.err.contains("failed: 5 milliseconds"), "{short:?}");
    run(&server, &["hub", "retention", "nobody"]).await.code(3);
    run(&server, &["hub", "retention", "nobody", "--failed", "1d"]).await.code(3);

    let start = ["instance", "start", "A", "--id", "a", "--task-hub", "orders"];
    run(&server, &start).await.code(0);
    // Nothing goes without a confirmation.
    for line in [&["hub", "delete", "orders"][..], &["hub", "create", "orders", "--recreate"]] {
        let refused = run(&server, line).await.code(2);
        assert!(refused.err.contains("--yes"), "{refused:?}");
    }
    let get = ["instance", "get", "a", "--task-hub", "orders"];
    run(&server, &get).await.code(0);
    run(&server, &["hub", "create", "orders", "--recreate", "--yes"]).await.code(0);
    let gone = run(&server, &get).await.code(3);
    assert!(gone.err.contains("there is no instance a"), "{gone:?}");

    run(&server, &["hub", "delete", "orders", "--yes"]).await.code(0);
    assert_eq!(names(&run(&server, &["hub", "list", "--output", "json"]).await), ["default"]);
    // Deleting again changes nothing (R2.97).
    run(&server, &["hub", "delete", "orders", "--yes"]).await.code(0);
    run(&server, &["hub", "create", "a b"]).await.code(4);
}

#[tokio::test]
async fn a_list_of_hubs_has_as_many_pages_as_it_needs() {
    use durahub_proto::own::ListTaskHubsRequest;
    use durahub_proto::own::task_hub_service_client::TaskHubServiceClient;

    let task_hubs: Vec<_> = (0..7).map(|n| format!("hub{n}")).collect();
    let options = ServerOptions { task_hubs: task_hubs.clone(), ..Default::default() };
    let server = TestServer::start_with(options).await;
    let address = format!("http://{}", server.addresses.grpc);
    let mut rpc = TaskHubServiceClient::connect(address).await.unwrap();
    let (mut found, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListTaskHubsRequest { after, page_size: 3 };
        let page = rpc.list_task_hubs(request).await.unwrap().into_inner();
        found.extend(page.task_hubs.into_iter().map(|hub| hub.name));
        pages += 1;
        after = page.next_after;
        if after.is_empty() {
            break;
        }
    }
    assert_eq!((found, pages), (task_hubs, 3));
    for page_size in [-1, 1001] {
        let request = ListTaskHubsRequest { page_size, ..Default::default() };
        let refused = rpc.list_task_hubs(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
}
