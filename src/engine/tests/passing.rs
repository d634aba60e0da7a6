//! What passes through the engine unchanged: texts, versions, tags, traces, failures (sections 6 and 7).

use super::*;

/// Texts that a careless server would mix up (R2.7, R3.59, R7.11, R7.12).
const TEXTS: [Option<&str>; 9] = [
    None,
    Some(""),
    Some("null"),
    Some("0"),
    Some("false"),
    Some("\"\""),
    Some(" { \"a\" : 1 } \r\n"),
    Some("blob:v1:container:blob"),
    Some("\u{0}\u{1F980}not json"),
];

fn trace(parent: &str) -> wire::TraceContext {
    wire::TraceContext {
        trace_parent: parent.into(),
        trace_state: Some("a=b".into()),
        ..Default::default()
    }
}

fn span(id: &str) -> wire::OrchestrationTraceContext {
    wire::OrchestrationTraceContext {
        span_id: Some(id.into()),
        span_start_time: Some(prost_types::Timestamp { seconds: 7, nanos: 8 }),
    }
}

fn started_event(events: &[Bytes]) -> wire::ExecutionStartedEvent {
    let mut found = events.iter().filter_map(|event| match content(event) {
        EventType::ExecutionStarted(started) => Some(started),
        _ => None,
    });
    let started = found.next().expect("an executionStarted");
    assert!(found.next().is_none(), "R3.25: exactly one");
    started
}

#[test]
fn texts_pass_byte_for_byte_everywhere() {
    for text in TEXTS {
        let text = text.map(durahub_proto::Text::from);
        let mut world = World::new();
        let input = text.clone();
        assert!(world.start(wire::CreateInstanceRequest { input, ..request("a") }).is_ok());
        let raised = wire::RaiseEventRequest {
            instance_id: "a".into(),
            name: "MyEvent".into(),
            input: text.clone(),
        };
        world.propose(Command::RaiseEvent(command::RaiseEvent { hub: HUB, request: raised }));
        let turn = world.turn("a").expect("a turn");
        assert_eq!(started_event(&turn.new).input, text, "R2.7");
        assert_eq!(
            content(&turn.new[2]),
            EventType::EventRaised(wire::EventRaisedEvent {
                name: "MyEvent".into(),
                input: text.clone()
            }),
            "R2.42: the name as sent"
        );
        let scheduled = wire::ScheduleTaskAction {
            name: "A".into(),
            input: text.clone(),
            ..Default::default()
        };
        let done = world.commit(&turn.id, vec![action(1, Action::ScheduleTask(scheduled))]);
        let item = activities(&done).remove(0);
        let open = read::task(&world.rows, &item).expect("open");
        assert_eq!(open.input, text, "R3.35");

        let task = command::TaskId {
            hub: HUB,
            instance: "a".into(),
            generation: item.generation,
            number: item.number,
        };
        let result = command::CompleteActivity { task, result: text.clone(), failure: None };
        world.propose(Command::CompleteActivity(result));
        let suspend = wire::SuspendRequest { instance_id: "a".into(), reason: text.clone() };
        world.propose(Command::Suspend(command::Suspend { hub: HUB, request: suspend }));
        let resume = wire::ResumeRequest { instance_id: "a".into(), reason: text.clone() };
        world.propose(Command::Resume(command::Resume { hub: HUB, request: resume }));
        let stop = wire::TerminateRequest {
            instance_id: "a".into(),
            output: text.clone(),
            recursive: true,
        };
        world.propose(Command::Terminate(command::Terminate { hub: HUB, request: stop }));
        let turn = world.turn("a").expect("a turn");
        let new: Vec<EventType> = turn.new[1..].iter().map(content).collect();
        let EventType::TaskCompleted(completed) = &new[0] else { panic!("{new:?}") };
        assert_eq!((completed.task_scheduled_id, &completed.result), (1, &text), "R3.59");
        let EventType::ExecutionSuspended(suspended) = &new[1] else { panic!("{new:?}") };
        let EventType::ExecutionResumed(resumed) = &new[2] else { panic!("{new:?}") };
        assert_eq!((&suspended.input, &resumed.input), (&text, &text), "R2.55");
        let EventType::ExecutionTerminated(stopped) = &new[3] else { panic!("{new:?}") };
        assert_eq!((&stopped.input, stopped.recurse), (&text, true), "R2.47");

        let ended = command::CompleteTurn {
            turn: turn.id,
            actions: vec![action(
                2,
                Action::CompleteOrchestration(wire::CompleteOrchestrationAction {
                    result: text.clone(),
                    ..end(wire::OrchestrationStatus::Completed, None)
                }),
            )],
            custom_status: text.clone(),
            ..Default::default()
        };
        world.complete(ended);
        let state = world.state("a");
        assert_eq!((&state.input, &state.output), (&text, &text), "R7.11");
        let status = text.filter(|text| !text.is_empty());
        assert_eq!(state.custom_status, status, "R4.86: empty is none, \"\" is a text");
        assert_eq!(state.failure_details, None, "R2.27");
        world.check_replay();
    }
}

#[test]
fn versions_and_tags_pass_and_unset_is_not_empty() {
    for version in [None, Some(""), Some("1.2")] {
        let version = version.map(durahub_proto::Text::from);
        let tags: BTreeMap<String, String> = [("k".to_owned(), "v".to_owned())].into();
        let mut world = World::new();
        let start = wire::CreateInstanceRequest {
            version: version.clone(),
            tags: tags.clone(),
            ..request("a")
        };
        world.start(start);
        let turn = world.turn("a").expect("a turn");
        let started = started_event(&turn.new);
        assert_eq!((&started.version, &started.tags), (&version, &tags), "R2.8, R2.9, R4.7");
        let state = world.state("a");
        assert_eq!((&state.version, &state.tags), (&version, &tags), "R2.8, R2.9");

        // Continue-as-new keeps both, unless it says otherwise (R4.55).
        let mut again = end(wire::OrchestrationStatus::ContinuedAsNew, Some("i2"));
        world.commit(&turn.id, vec![action(1, Action::CompleteOrchestration(again.clone()))]);
        let turn = world.turn("a").expect("a turn");
        let next = started_event(&turn.new);
        assert_eq!((&next.version, &next.tags), (&version, &tags));
        assert_eq!(next.input, Some("i2".into()));
        let execution = |started: &wire::ExecutionStartedEvent| {
            started.orchestration_instance.clone().and_then(|it| it.execution_id).expect("an id")
        };
        assert_ne!(execution(&next), execution(&started), "R2.12: fresh");
        assert_eq!(execution(&next).as_str(), turn.execution_id, "R2.12: the same in both places");
        assert!(execution(&next).as_str().chars().all(|c| c.is_ascii_hexdigit()));
        assert_eq!(execution(&next).len(), 32);
        again.new_version = Some("2".into());
        world.commit(&turn.id, vec![action(1, Action::CompleteOrchestration(again))]);
        let turn = world.turn("a").expect("a turn");
        assert_eq!(started_event(&turn.new).version, Some("2".into()));
        assert_eq!(world.state("a").version, Some("2".into()), "R7.15");
    }
}

/// R3.13: the action's version if it is present, even empty; else the orchestration's.
#[test]
fn an_activity_is_matched_by_its_own_version_or_its_orchestrations() {
    let mut world = World::new();
    world.start(wire::CreateInstanceRequest { version: Some("7".into()), ..request("a") });
    let turn = world.turn("a").expect("a turn").id;
    let scheduled = |id, version: Option<&str>| {
        let version = version.map(Into::into);
        let name = "A".into();
        let it = wire::ScheduleTaskAction { name, version, ..Default::default() };
        action(id, Action::ScheduleTask(it))
    };
    let actions = vec![scheduled(1, None), scheduled(2, Some("")), scheduled(3, Some("8"))];
    let done = world.commit(&turn, actions);
    let versions: Vec<_> = done
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::ActivityReady { class, .. } => Some(class.version.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(versions, ["7", "", "8"]);
    let sent: Vec<_> = activities(&done)
        .iter()
        .map(|item| read::task(&world.rows, item).expect("open").version)
        .collect();
    assert_eq!(sent, [None, Some("".into()), Some("8".into())], "R3.33: as in the action");
}

#[test]
fn traces_pass_unchanged_and_a_span_stays() {
    let mut world = World::new();
    let odd = trace("not a W3C text");
    world.start(wire::CreateInstanceRequest {
        parent_trace_context: Some(odd.clone()),
        ..request("a")
    });
    let turn = world.turn("a").expect("a turn");
    // R6.1: the server makes no context of its own.
    assert_eq!(turn.span, None, "R6.5: none on the first turn");
    assert_eq!(
        started_event(&turn.new).parent_trace_context,
        Some(odd.clone()),
        "R2.10, R6.2, R6.11"
    );

    let scheduled = |id, context: Option<wire::TraceContext>| {
        let (name, parent_trace_context) = ("A".into(), context);
        let it = wire::ScheduleTaskAction { name, parent_trace_context, ..Default::default() };
        action(id, Action::ScheduleTask(it))
    };
    let own = trace("00-own");
    let done = world.complete(command::CompleteTurn {
        turn: turn.id,
        actions: vec![scheduled(1, Some(own.clone())), scheduled(2, None)],
        span: Some(span("s1")),
        ..Default::default()
    });
    let items = activities(&done);
    let given: Vec<_> =
        items.iter().map(|item| read::task(&world.rows, item).expect("open").trace).collect();
    assert_eq!(given, [Some(own.clone()), Some(odd.clone())], "R6.3, R6.15");
    let history = world.history("a");
    let in_history: Vec<_> = history
        .iter()
        .filter_map(|event| match &event.event_type {
            Some(EventType::TaskScheduled(it)) => Some(it.parent_trace_context.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(in_history, [Some(own), Some(odd.clone())], "R6.3");

    // R6.5, R6.6: kept by a response without one, and by one with an empty id.
    for kept in [None, Some(wire::OrchestrationTraceContext::default()), Some(span(""))] {
        world.raise("a", "E");
        let turn = world.turn("a").expect("a turn");
        assert_eq!(turn.span, Some(span("s1")));
        assert_eq!(started_event(&turn.past).parent_trace_context, Some(odd.clone()), "R6.2");
        let turn = command::CompleteTurn { turn: turn.id, span: kept, ..Default::default() };
        assert!(world.complete(turn).is_ok());
    }
    world.raise("a", "E");
    let turn = world.turn("a").expect("a turn");
    let again = end(wire::OrchestrationStatus::ContinuedAsNew, None);
    world.commit(&turn.id, vec![action(3, Action::CompleteOrchestration(again))]);
    let turn = world.turn("a").expect("a turn");
    assert_eq!(turn.span, Some(span("s1")), "R6.7");
    assert_eq!(started_event(&turn.new).parent_trace_context, Some(odd), "R6.7");
}

#[test]
fn failure_details_pass_whole() {
    let properties = [("p".to_owned(), prost_types::Value::default())].into();
    let inner = wire::TaskFailureDetails {
        error_type: "Inner".into(),
        stack_trace: Some("".into()),
        properties,
        ..Default::default()
    };
    let failure = wire::TaskFailureDetails {
        error_type: "Outer".into(),
        // One reference server takes a failure without a message for a success (R3.59).
        error_message: String::new(),
        inner_failure: Some(Box::new(inner)),
        is_non_retriable: true,
        ..Default::default()
    };
    let mut world = World::new();
    world.start(request("a"));
    let turn = world.turn("a").expect("a turn").id;
    let item = activities(&world.commit(&turn, vec![task(1)])).remove(0);
    let id = command::TaskId {
        hub: HUB,
        instance: "a".into(),
        generation: item.generation,
        number: item.number,
    };
    let failed =
        command::CompleteActivity { task: id, result: None, failure: Some(failure.clone()) };
    world.propose(Command::CompleteActivity(failed));
    let turn = world.turn("a").expect("a turn");
    assert_eq!(
        content(&turn.new[1]),
        EventType::TaskFailed(wire::TaskFailedEvent {
            task_scheduled_id: 1,
            failure_details: Some(failure.clone())
        }),
        "R4.30"
    );
    // R4.27: whatever made the worker give up, a broken replay included, is a failure like any other.
    let mut failed = end(wire::OrchestrationStatus::Failed, None);
    failed.failure_details = Some(failure.clone());
    world.commit(&turn.id, vec![action(2, Action::CompleteOrchestration(failed))]);
    let state = world.state("a");
    assert_eq!((state.output, state.failure_details), (None, Some(failure)), "R4.51");
}
