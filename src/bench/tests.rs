//! The benchmark against the fake: that it counts what happens, and that it notices what goes wrong.

use clap::Parser;
use durahub_proto::wire;
use wire::orchestrator_action::OrchestratorActionType;

use super::fake::{Fake, Mischief};
use super::workload::{self, Kind, Plan};
use super::{BenchArgs, Report};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: BenchArgs,
}

/// Runs the benchmark with these arguments against a fake of that character.
async fn bench(line: &str, mischief: Mischief) -> (Report, Fake) {
    let (fake, address) = Fake::start(mischief).await;
    let line = format!("bench {line} --endpoint http://{address}");
    let args = Line::parse_from(line.split_whitespace()).args;
    (super::measure(args).await.expect("measured"), fake)
}

#[tokio::test]
async fn a_sequence_counts_starts_turns_and_activities() {
    let (report, _) = bench("sequence --instances 50 --concurrency 8", Mischief::default()).await;
    assert_eq!((report.completed, report.failed, report.lost, report.unfinished), (50, 0, 0, 0));
    assert_eq!((report.turns, report.activities_run), (50 * 6, 50 * 5));
    let per_instance = report.actions_per_second / report.orchestrations_per_second;
    assert!((per_instance - 11.0).abs() < 0.01, "{per_instance} actions per instance");
    let ms = report.latency_ms.expect("something completed");
    assert!(0.0 < ms.p50 && ms.p50 <= ms.p90 && ms.p90 <= ms.p99 && ms.p99 <= ms.max);
    assert_eq!(report.fdatasync_us.as_ref().expect("the disk was probed").samples, 200);
    report.verdict().expect("all is well");
}

#[tokio::test]
async fn fanout_and_events_complete() {
    for (line, actions) in [
        ("fanout --instances 20 --concurrency 4", 41.0),
        ("events --instances 20 --concurrency 4", 6.0),
        ("sequence --instances 20 --activities 0 --threads 2", 1.0),
        ("fanout --instances 1 --activities 500 --payload 0", 1001.0),
    ] {
        let (report, _) = bench(line, Mischief::default()).await;
        report.verdict().expect(line);
        assert_eq!(report.completed, report.instances, "{line}");
        let per_instance = report.actions_per_second / report.orchestrations_per_second;
        assert!((per_instance - actions).abs() < 0.05, "{line}: {per_instance}");
    }
}

#[tokio::test]
async fn a_broken_stream_is_opened_again_and_nothing_is_lost() {
    let mischief = Mischief { break_stream_after: Some(40), ..Default::default() };
    let (report, fake) = bench("sequence --instances 30 --concurrency 30", mischief).await;
    report.verdict().expect("the worker came back");
    assert_eq!(report.completed, 30);
    assert!(report.reconnects > 0);
    assert!(fake.streams() > 1);
}

#[tokio::test]
async fn a_start_whose_answer_was_lost_is_not_an_error() {
    let mischief = Mischief { forget_starts: 3, ..Default::default() };
    let (report, _) = bench("sequence --instances 10", mischief).await;
    report.verdict().expect("starting twice is harmless");
    assert_eq!((report.completed, report.retries), (10, 3));
}

#[tokio::test]
async fn a_wrong_result_is_noticed() {
    let mischief = Mischief { lie_at: Some(7), ..Default::default() };
    for line in ["sequence --instances 10", "fanout --instances 10"] {
        let (report, _) = bench(line, mischief).await;
        assert_eq!((report.completed, report.failed), (9, 1), "{line}");
        assert!(report.errors[0].reason.contains("wrong result"), "{}", report.errors[0].reason);
        report.verdict().expect_err("one instance failed");
    }
}

#[tokio::test]
async fn an_event_that_comes_twice_is_noticed() {
    let mischief = Mischief { repeat_events: true, ..Default::default() };
    let (report, _) = bench("events --instances 3", mischief).await;
    assert_eq!((report.completed, report.failed), (0, 3));
}

#[tokio::test]
async fn an_instance_that_nobody_works_on_is_lost() {
    let line = "sequence --instances 2 --no-worker --timeout 1";
    let (report, _) = bench(line, Mischief::default()).await;
    assert_eq!((report.completed, report.lost, report.workers), (0, 2, 0));
    assert!(report.latency_ms.is_none());
    report.verdict().expect_err("lost instances are errors");
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory;
    Line::command().debug_assert();
    let args = Line::parse_from(["bench", "fanout"]).args;
    assert_eq!((args.instances, args.concurrency, args.payload, args.workers), (2000, 100, 100, 1));
    assert_eq!((args.activities, args.workload.default_count()), (None, 20));
    let help = Line::command().render_long_help().to_string();
    for promise in ["--concurrency 1", "--no-worker", "--data-dir", "temporary files"] {
        assert!(help.contains(promise), "{promise} is missing in:\n{help}");
    }
}

#[tokio::test]
async fn no_server_is_one_clear_error() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let endpoint = format!("http://{}", free.local_addr().expect("bound"));
    drop(free);
    let line = ["bench", "sequence", "--endpoint", &endpoint];
    let error = super::measure(Line::parse_from(line).args).await.expect_err("nobody listens");
    assert!(format!("{error:#}").contains(&endpoint), "{error:#}");
}

#[test]
fn the_json_report_keeps_its_field_names() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (report, _) = runtime.block_on(bench("events --instances 1", Mischief::default()));
    let json = serde_json::to_value(&report).expect("plain data");
    let names: Vec<_> = json.as_object().expect("an object").keys().cloned().collect();
    assert_eq!(
        names.join(" "),
        "actions_per_second activities activities_run completed completions_refused concurrency endpoint \
         errors failed fdatasync_us generator_cpu_us instances interrupted latency_ms lost orchestrations_per_second \
         payload_bytes reconnects retries seconds task_hub threads turns unfinished version workers workload"
    );
    assert_eq!(json["workload"], "events");
}

#[test]
fn payloads_have_the_size_that_was_asked_for() {
    for (value, size, text) in [(17, 8, "\"17xxxx\""), (17, 0, "\"17\""), (17, 5, "\"17x\"")] {
        let payload = workload::payload(value, false, size);
        assert_eq!(payload.as_str(), text);
        assert_eq!(workload::number(text), Some((value, false)));
    }
    assert_eq!(workload::number(workload::payload(5, true, 9).as_str()), Some((5, true)));
    assert_eq!(workload::step(&"\"9xxx\"".into()).expect("a number").as_str(), "\"10xx\"");
    assert!(workload::step(&"{}".into()).is_none());
}

#[test]
fn a_second_result_for_a_task_fails_the_instance() {
    use wire::history_event::EventType;
    let encode = |event_type| {
        let event = wire::HistoryEvent { event_type: Some(event_type), ..Default::default() };
        bytes::Bytes::from(prost::Message::encode_to_vec(&event))
    };
    let plan = Plan { kind: Kind::Sequence, count: 3, payload: 10 };
    let started = wire::ExecutionStartedEvent {
        name: "BenchSequence".into(),
        input: Some(plan.input(7)),
        ..Default::default()
    };
    let result = wire::TaskCompletedEvent {
        task_scheduled_id: 1,
        result: Some(workload::payload(8, false, 10)),
    };
    let past = [
        encode(EventType::ExecutionStarted(started)),
        encode(EventType::TaskScheduled(Default::default())),
        encode(EventType::TaskCompleted(result)),
    ];
    let actions = workload::turn(&past, &[]).expect("one of ours");
    let Some(OrchestratorActionType::ScheduleTask(task)) = &actions[0].orchestrator_action_type
    else {
        panic!("schedules the second activity, not {actions:?}");
    };
    assert_eq!((actions[0].id, task.input.clone()), (2, Some(workload::payload(8, false, 10))));

    let actions = workload::turn(&past, &past[2..]).expect("one of ours");
    let Some(OrchestratorActionType::CompleteOrchestration(end)) =
        &actions[0].orchestrator_action_type
    else {
        panic!("fails, not {actions:?}");
    };
    let details = end.failure_details.as_ref().expect("says why");
    assert_eq!(details.error_message, "a task got two results");
}

/// What the generator itself costs, with a server that costs next to nothing:
/// `cargo test --release --lib how_fast -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement, not a check"]
async fn how_fast_is_the_generator_alone() {
    for line in
        ["sequence --instances 20000", "fanout --instances 5000", "events --instances 20000"]
    {
        let (report, _) = bench(line, Mischief::default()).await;
        report.verdict().expect("all is well");
        report.print(super::Output::Table).expect("printed");
    }
}
