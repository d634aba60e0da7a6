//! Messages between instances, against the real binary: children over all partitions, events, ends that go
//! down the tree, rewind and restart, and what `kill -9` does to all of it.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use durahub_proto::wire;
use durahub_proto::wire::history_event::EventType;
use parking_lot::Mutex;
use support::actions::{
    action, complete, create_timer, create_timer_at, fail, failure, schedule_task, send_event,
    start_child,
};
use support::history::compact;
use support::{Client, History, Program, TestServer, Worker, WorkerOptions};
use tonic::Code;
use wire::OrchestrationStatus::{Completed, Failed, Running, Terminated};
use wire::orchestrator_action::OrchestratorActionType as Type;

/// R4.2 to R4.6, A3: the twelve events that a suite of the SDKs pins, and those of the child.
#[tokio::test]
async fn histories_are_exact() {
    let server = TestServer::start().await;
    let client = server.client();
    let program = Program::new()
        .orchestrator("Parent", |history| {
            match (history.result(1), history.fired(2), history.result(3)) {
                (None, ..) => vec![schedule_task(1, "Work", "")],
                (_, false, _) => vec![create_timer_at(2, history.now() + Duration::from_millis(1))],
                (_, _, None) => vec![start_child(3, "child", "Child", "")],
                (.., Some(result)) => vec![complete(4, &result.expect("the child completes"))],
            }
        })
        .orchestrator("Child", |_| vec![complete(1, "grown")])
        .activity("Work", |_| Ok("done".into()));
    let _running = program.run(&client, WorkerOptions::default());
    client.start("parent", "Parent", "").await;
    assert_eq!(client.output("parent").await, "grown");
    assert_eq!(
        compact(&client.history("parent").await),
        "OrchestratorStarted#-1, ExecutionStarted#0, TaskScheduled#1, \
         OrchestratorStarted#-1, TaskCompleted#-1(1), TimerCreated#2, \
         OrchestratorStarted#-1, TimerFired#-1(2), SubOrchestrationInstanceCreated#3, \
         OrchestratorStarted#-1, SubOrchestrationInstanceCompleted#-1(3), ExecutionCompleted#4"
    );
    assert_eq!(
        compact(&client.history("child").await),
        "OrchestratorStarted#-1, ExecutionStarted#0, ExecutionCompleted#1"
    );
}

/// R4.17, R4.34, R4.36, R6.4, R6.15: a worker that leaves ids to the server, in an order of its own.
#[tokio::test]
async fn a_child_is_told_what_its_parent_said_and_who_it_is() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let trace = |text: &str| wire::TraceContext { trace_parent: text.into(), ..Default::default() };
    client
        .start_with(wire::CreateInstanceRequest {
            instance_id: "parent".into(),
            name: "Parent".into(),
            version: Some("v7".into()),
            tags: [("of".to_owned(), "parent".to_owned())].into(),
            parent_trace_context: Some(trace("00-parent")),
            ..Default::default()
        })
        .await;
    let turn = worker.next_turn().await;
    let create = |id: i32, trace: Option<wire::TraceContext>| {
        action(
            id,
            Type::CreateSubOrchestration(wire::CreateSubOrchestrationAction {
                name: "Child".into(),
                version: Some("".into()),
                input: Some("in".into()),
                parent_trace_context: trace,
                tags: [("of".to_owned(), "child".to_owned())].into(),
                ..Default::default()
            }),
        )
    };
    let parent_execution = turn.history.execution.clone();
    worker.complete_turn(&turn, vec![create(31, None), create(30, Some(trace("00-child")))]).await;

    for (id, span) in [("parent:001e", "00-child"), ("parent:001f", "00-parent")] {
        let turn = worker.next_turn_of(id).await;
        let started = turn.history.started();
        assert_eq!((started.name.as_str(), turn.history.input()), ("Child", "in"));
        assert_eq!(
            started.version.as_ref().map(|v| v.as_str()),
            Some(""),
            "unset and empty differ"
        );
        assert_eq!(started.tags, [("of".to_owned(), "child".to_owned())].into(), "R4.42");
        assert_eq!(started.parent_trace_context, Some(trace(span)), "R6.4, R6.15");
        let parent = started.parent_instance.clone().expect("R4.34");
        assert_eq!(parent.name.map(String::from).as_deref(), Some("Parent"));
        assert_eq!(parent.version.map(String::from).as_deref(), Some("v7"));
        assert_eq!(parent.task_scheduled_id, if id.ends_with('e') { 30 } else { 31 });
        let of = parent.orchestration_instance.expect("R4.34");
        assert_eq!(of.instance_id, "parent");
        assert_eq!(of.execution_id.map(String::from), Some(parent_execution.clone()));
        assert_ne!(turn.history.execution, parent_execution);
        let state = client.get(id).await.expect("exists");
        assert_eq!(state.parent_instance_id.map(String::from).as_deref(), Some("parent"), "R2.30");
        worker.complete_turn(&turn, vec![complete(1, id)]).await;
    }
    // The answers come in one turn or in two, each once.
    let mut turn = worker.next_turn_of("parent").await;
    while turn.history.result(30).is_none() || turn.history.result(31).is_none() {
        worker.complete_turn(&turn, Vec::new()).await;
        turn = worker.next_turn_of("parent").await;
    }
    worker.complete_turn(&turn, vec![complete(32, "both")]).await;
    assert_eq!(client.output("parent").await, "both");
}

/// Two hundred children of one turn, spread over all partitions: each answers once, with its own result.
#[tokio::test]
async fn a_fan_out_over_all_partitions_is_joined() {
    const WIDTH: i32 = 200;
    let server = TestServer::start().await;
    let client = server.client();
    let program = Program::new()
        .orchestrator("Parent", |history| {
            let results: Vec<_> = (1..=WIDTH).filter_map(|id| history.result(id)).collect();
            if results.len() < WIDTH as usize {
                return (1..=WIDTH)
                    .map(|id| start_child(id, "", "Child", &id.to_string()))
                    .collect();
            }
            let results: Vec<_> = results.into_iter().map(|it| it.expect("completes")).collect();
            vec![complete(WIDTH + 1, &results.join(" "))]
        })
        .orchestrator("Child", |history| vec![complete(1, history.input())]);
    let _running = program.run(&client, WorkerOptions::default());
    client.start("wide", "Parent", "").await;
    let expected: Vec<_> = (1..=WIDTH).map(|id| id.to_string()).collect();
    assert_eq!(client.output("wide").await, expected.join(" "));
    let answers = client.history("wide").await;
    let is_answer = |event: &&wire::HistoryEvent| {
        matches!(event.event_type, Some(EventType::SubOrchestrationInstanceCompleted(_)))
    };
    assert_eq!(answers.iter().filter(is_answer).count(), WIDTH as usize, "S9");
}

/// R2.3, R2.4, R4.38: a child id that cannot be used fails the child, never the call of the worker.
#[tokio::test]
async fn a_child_that_cannot_be_started_fails_at_its_parent() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("taken", "Other", "").await;
    let other = worker.next_turn().await;
    worker.complete_turn(&other, vec![create_timer(1, Duration::from_secs(600))]).await;
    client.start("parent", "Parent", "").await;
    let turn = worker.next_turn_of("parent").await;
    let long = "x".repeat(101);
    let actions = vec![start_child(1, &long, "Child", ""), start_child(2, "taken", "Child", "")];
    worker.complete_turn(&turn, actions).await;
    let mut turn = worker.next_turn_of("parent").await;
    while turn.history.result(2).is_none() {
        worker.complete_turn(&turn, Vec::new()).await;
        turn = worker.next_turn_of("parent").await;
    }
    let details =
        |id| turn.history.result(id).expect("answered").expect_err("failed").error_message;
    assert!(details(1).contains("length"), "{}", details(1));
    assert!(details(2).contains("already exists: taken"), "{}", details(2));
    worker.complete_turn(&turn, vec![complete(3, "")]).await;
    assert_eq!(client.status("taken").await, Running);
}

/// Events of orchestrations arrive in order, at a child that has only just been asked for, too (R4.24).
#[tokio::test]
async fn events_find_other_instances_in_order() {
    const COUNT: i32 = 50;
    let server = TestServer::start().await;
    let client = server.client();
    let program = Program::new()
        .orchestrator("Sender", |history| {
            let mut actions = vec![start_child(1, "receiver", "Receiver", "")];
            actions
                .extend((2..2 + COUNT).map(|id| send_event(id, "receiver", "n", &id.to_string())));
            actions.push(send_event(90, "nobody", "lost", ""));
            actions.push(send_event(91, history.instance.as_str(), "own", "me"));
            match (history.result(1), history.raised("own").as_slice()) {
                (Some(result), [own]) => {
                    vec![complete(99, &format!("{} {own}", result.expect("completes")))]
                }
                _ => actions,
            }
        })
        .orchestrator("Receiver", |history| match history.raised("n") {
            all if all.len() < COUNT as usize => Vec::new(),
            all => vec![complete(1, &all.join(","))],
        });
    let _running = program.run(&client, WorkerOptions::default());
    client.start("sender", "Sender", "").await;
    let expected: Vec<_> = (2..2 + COUNT).map(|id| id.to_string()).collect();
    assert_eq!(client.output("sender").await, format!("{} me", expected.join(",")));
}

/// R2.47, R2.51, R2.52: down the tree, through a child that has ended; and only when it is asked for.
#[tokio::test]
async fn a_recursive_termination_ends_the_tree() {
    let server = TestServer::start().await;
    let client = server.client();
    let hour = Duration::from_secs(3600);
    let program = Program::new()
        .orchestrator("Top", move |history| {
            let id = &history.instance;
            let mut actions = vec![start_child(1, &format!("{id}-mid"), "Mid", "")];
            actions.push(start_child(2, &format!("{id}-leaf"), "Leaf", ""));
            actions.push(create_timer_at(3, history.now() + hour));
            actions
        })
        .orchestrator("Mid", |history| {
            let low = format!("{}-low", history.instance);
            vec![start_child(1, &low, "Leaf", ""), complete(2, "early")]
        })
        .orchestrator("Leaf", move |history| vec![create_timer_at(1, history.now() + hour)]);
    let _running = program.run(&client, WorkerOptions::default());
    for top in ["all", "one"] {
        client.start(top, "Top", "").await;
        for (id, status) in [("leaf", Running), ("mid", Completed), ("mid-low", Running)] {
            wait_status(&client, &format!("{top}-{id}"), status).await;
        }
    }
    let request = wire::TerminateRequest {
        instance_id: "all".into(),
        output: Some("\"stop\"".into()),
        recursive: true,
    };
    client.rpc().terminate_instance(request).await.expect("is accepted");
    client.terminate("one", "alone").await;
    for id in ["all", "all-leaf", "all-mid-low", "one"] {
        assert_eq!(client.wait(id).await.orchestration_status(), Terminated, "{id}");
    }
    assert_eq!(
        client.wait("all-mid-low").await.output.map(String::from).as_deref(),
        Some("\"stop\"")
    );
    assert_eq!(client.status("all-mid").await, Completed, "who has ended stays as it is");
    for id in ["one-leaf", "one-mid-low"] {
        assert_eq!(client.status(id).await, Running, "{id} (R2.52)");
    }
}

/// Asks until the instance exists and has this status: a child does not exist from the start.
async fn wait_status(client: &Client, id: &str, status: wire::OrchestrationStatus) {
    while client.get(id).await.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.wait_status(id, status).await;
}

/// R2.60 to R2.64, R2.67 to R2.71: codes and texts that clients look at, and what then happens.
#[tokio::test]
async fn rewind_and_restart_let_instances_try_again() {
    let server = TestServer::start().await;
    let client = server.client();
    let (broken, good) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (flag, count) = (Arc::clone(&broken), Arc::clone(&good));
    let program = Program::new()
        .orchestrator("Parent", |history| match (history.result(1), history.result(2)) {
            (None, _) => vec![schedule_task(1, "Good", "")],
            (_, None) => vec![start_child(2, "the-child", "Child", "")],
            (_, Some(Ok(result))) => vec![complete(3, &result)],
            (_, Some(Err(details))) => vec![fail(3, details)],
        })
        .orchestrator("Child", |history| match history.result(1) {
            None => vec![schedule_task(1, "Bad", "")],
            Some(Ok(result)) => vec![complete(2, &result)],
            Some(Err(details)) => vec![fail(2, details)],
        })
        .orchestrator("Waits", |history| {
            vec![create_timer_at(1, history.now() + Duration::from_secs(3600))]
        })
        .activity("Good", move |_| {
            count.fetch_add(1, SeqCst);
            Ok("good".into())
        })
        .activity("Bad", move |_| match flag.load(SeqCst) {
            true => Err(failure("Oops", "not yet")),
            false => Ok("mended".into()),
        });
    let _running = program.run(&client, WorkerOptions::default());
    let rewind = async |id: &str| {
        let request =
            wire::RewindInstanceRequest { instance_id: id.into(), reason: Some("mended".into()) };
        client.rpc().rewind_instance(request).await
    };
    let restart = async |id: &str, new: bool| {
        let request = wire::RestartInstanceRequest {
            instance_id: id.into(),
            restart_with_new_instance_id: new,
        };
        client.rpc().restart_instance(request).await.map(|answer| answer.into_inner().instance_id)
    };

    client.start("waits", "Waits", "i").await;
    client.wait_started("waits").await;
    assert_eq!(rewind("nobody").await.expect_err("R2.60").code(), Code::NotFound);
    let refused = rewind("waits").await.expect_err("R2.60");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("not in a failed state"), "{refused}");
    assert_eq!(restart("nobody", false).await.expect_err("R2.67").code(), Code::NotFound);
    assert_eq!(restart("nobody", true).await.expect_err("R2.67").code(), Code::NotFound);
    assert_eq!(restart("waits", false).await.expect_err("R2.68").code(), Code::FailedPrecondition);
    let twin = restart("waits", true).await.expect("R2.69");
    assert!(twin.len() == 32 && twin.bytes().all(|b| b.is_ascii_hexdigit()), "{twin} (R2.70)");
    let state = client.wait_started(&twin).await;
    assert_eq!((state.name.as_str(), state.input.map(String::from)), ("Waits", Some("i".into())));
    assert_eq!(client.status("waits").await, Running, "the original goes on");

    client.start("parent", "Parent", "").await;
    let failed = client.wait("parent").await;
    assert_eq!(failed.orchestration_status(), Failed);
    let execution = failed.execution_id.clone();
    rewind("parent").await.expect("R2.61");
    let again = client.wait("parent").await;
    assert_eq!(again.orchestration_status(), Failed, "it is still broken");
    assert_ne!(again.execution_id, execution, "R4.76");
    broken.store(false, SeqCst);
    rewind("parent").await.expect("a second time (R2.63)");
    assert_eq!(client.output("parent").await, "mended");
    assert_eq!(client.status("the-child").await, Completed, "R2.64");
    assert_eq!(good.load(SeqCst), 1, "what succeeded is not run again (R2.63)");
    let rewound = |event: &&wire::HistoryEvent| {
        matches!(event.event_type, Some(EventType::ExecutionRewound(_)))
    };
    assert_eq!(client.history("parent").await.iter().filter(rewound).count(), 2, "R2.62, R4.82");

    assert_eq!(restart("parent", false).await.expect("R2.71"), "parent");
    assert_eq!(client.output("parent").await, "mended");
    assert_eq!(good.load(SeqCst), 2);
}

/// What a family of the crash test looks like: four children, each of which waits for two events.
const CHILDREN: i32 = 4;

fn family(violations: &Arc<Mutex<Vec<String>>>) -> Program {
    let (of_parent, of_child) = (Arc::clone(violations), Arc::clone(violations));
    Program::new()
        .orchestrator("Parent", move |history| {
            let answers = answers(history);
            if answers.values().any(|count| *count > 1) {
                of_parent.lock().push(format!("{}: answers {answers:?} (S9)", history.instance));
            }
            if answers.len() < CHILDREN as usize {
                let ask = |n: i32| {
                    let child = format!("{}:{n:04x}", history.instance);
                    [
                        start_child(n, "", "Child", ""),
                        send_event(n + 10, &child, "go", "1"),
                        send_event(n + 20, &child, "go", "2"),
                    ]
                };
                return (1..=CHILDREN).flat_map(ask).collect();
            }
            let results = (1..=CHILDREN).filter_map(|n| history.result(n));
            let results: Vec<_> =
                results.map(|it| it.unwrap_or_else(|it| it.error_message)).collect();
            vec![complete(99, &results.join(" "))]
        })
        .orchestrator("Child", move |history| {
            let events = history.raised("go");
            if !["1", "2"].iter().take(events.len()).eq(events.iter()) {
                of_child.lock().push(format!("{}: events {events:?} (S7)", history.instance));
            }
            match (events.len(), history.result(1)) {
                (..2, _) => Vec::new(),
                (_, None) => vec![schedule_task(1, "Work", "")],
                (_, Some(_)) => vec![complete(2, &history.instance)],
            }
        })
        .activity("Work", |_| {
            std::thread::sleep(Duration::from_millis(5));
            Ok(String::new())
        })
}

/// How often each child has answered.
fn answers(history: &History) -> BTreeMap<i32, u32> {
    let mut answers = BTreeMap::new();
    for event in history.events() {
        let task = match event {
            EventType::SubOrchestrationInstanceCompleted(it) => it.task_scheduled_id,
            EventType::SubOrchestrationInstanceFailed(it) => it.task_scheduled_id,
            _ => continue,
        };
        *answers.entry(task).or_default() += 1;
    }
    answers
}

/// S1, S7, S9, L1: families over all partitions, and `kill -9` again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_child_answers_once_across_kill_9() {
    let cycles = std::env::var("DURAHUB_CRASH_CYCLES").map_or(12, |n| n.parse().unwrap());
    let mut server = TestServer::start().await;
    let client = server.client();
    let violations = Arc::new(Mutex::new(Vec::new()));
    let _running = family(&violations).run(&client, WorkerOptions::default());
    let (stop, started) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let load: Vec<_> = (0..4)
        .map(|n| {
            tokio::spawn(start_families(n, client.clone(), Arc::clone(&stop), Arc::clone(&started)))
        })
        .collect();
    for cycle in 0..cycles {
        let before = started.lock().len();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..600))).await;
        server.kill9();
        server.restart_same_ports().await;
        assert_eq!(*violations.lock(), Vec::<String>::new(), "after kill number {cycle}");
        // A life counts from the moment at which it takes load.
        while started.lock().len() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    stop.store(true, SeqCst);
    for task in load {
        task.await.expect("the load ends");
    }
    let parents = started.lock().clone();
    for parent in &parents {
        let children = (1..=CHILDREN).map(|n| format!("{parent}:{n:04x}"));
        let children: Vec<_> = children.collect();
        assert_eq!(client.output(parent).await, children.join(" "));
        for child in children {
            let state = client.get(&child).await.expect("it answered, so it exists");
            assert_eq!(state.orchestration_status(), Completed);
            assert_eq!(state.parent_instance_id.map(String::from).as_ref(), Some(parent));
            let history = compact(&client.history(&child).await);
            assert_eq!(history.matches("EventRaised").count(), 2, "{child}: {history} (S7)");
            assert_eq!(history.matches("ExecutionCompleted").count(), 1, "{child}: {history}");
        }
    }
    assert_eq!(*violations.lock(), Vec::<String>::new());
    assert!(parents.len() > cycles, "hardly any load: {} families", parents.len());
}

/// Starts one family after the other and waits for each; every call is repeated until it is answered.
async fn start_families(
    customer: usize,
    client: Client,
    stop: Arc<AtomicBool>,
    started: Arc<Mutex<Vec<String>>>,
) {
    for number in 0.. {
        if stop.load(SeqCst) {
            return;
        }
        let id = format!("{customer}-{number}");
        loop {
            let request = wire::CreateInstanceRequest {
                instance_id: id.clone(),
                name: "Parent".into(),
                orchestration_id_reuse_policy: Some(Default::default()),
                ..Default::default()
            };
            match client.rpc().start_instance(request).await {
                Ok(_) => break,
                Err(status) if status.code() == Code::AlreadyExists => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        started.lock().push(id.clone());
        let request = wire::GetInstanceRequest { instance_id: id, ..Default::default() };
        while !stop.load(SeqCst) {
            let mut call = tonic::Request::new(request.clone());
            call.set_timeout(Duration::from_secs(2));
            match client.rpc().wait_for_instance_completion(call).await {
                Ok(_) => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}
