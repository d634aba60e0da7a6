//! Looks at trees that are too large for one answer.

use durahub_proto::wire;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Type;

use super::caller::{dispatcher, next, start};
use crate::dispatch::{StreamOptions, see};
use crate::engine::read::Known;

/// Children of an instance: more than one answer takes in.
const CHILDREN: i32 = 3000;

#[tokio::test]
async fn all_children_are_seen_however_many_there_are() {
    let (node, dispatcher, _leading) = dispatcher().await;
    start(&dispatcher).await;
    let options = StreamOptions { hub: 1, ..Default::default() };
    let mut stream = dispatcher.open_stream(options, futures::future::pending());
    let child = |id: i32| {
        let (instance_id, name) = (format!("{id:0>100}"), "N".to_owned());
        let action = wire::CreateSubOrchestrationAction { instance_id, name, ..Default::default() };
        let action = Some(Type::CreateSubOrchestration(action));
        wire::OrchestratorAction { id, orchestrator_action_type: action }
    };
    let response = wire::OrchestratorResponse {
        instance_id: "a".into(),
        completion_token: next(&mut stream).await.completion_token,
        actions: (0..CHILDREN).map(child).collect(),
        ..Default::default()
    };
    dispatcher.complete_turn(1, response, ()).await.expect("commits");

    let known = ["a", "nobody", "a"].map(|id| Known::root(id.to_owned()));
    let seen = see(dispatcher.partition_of(1, "a"), 1, &known).await.expect("it leads");
    assert_eq!(seen.len(), 2);
    for seen in seen {
        assert_eq!((&*seen.target.instance, seen.more), ("a", None));
        let ids: Vec<_> = seen.children.iter().map(|child| child.instance.clone()).collect();
        assert_eq!(ids, (0..CHILDREN).map(|id| format!("{id:0>100}")).collect::<Vec<_>>());
    }
    node.stop().await;
}
