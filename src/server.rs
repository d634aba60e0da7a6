//! A node: builds every room, starts them in order, stops them in reverse.
//!
//! Start: ports are bound before the data folder is touched, so a port in use changes nothing; then the
//! groups come up, then dispatch, then the gateway. Nobody listens at the peer port until the groups are up: other nodes
//! are refused at once and do not wait for a greeting. Stop: no new work is handed out; what is with workers
//! may finish within the drain time; streams and waits end with `UNAVAILABLE`; the store closes last.

use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use durahub_cluster::config::PARTITIONS_LIMIT;
use durahub_cluster::transport::{GrpcTransport, PeerServer, Secure};
use durahub_cluster::{GroupId, NodeConfig, Storage};
use metrics::gauge;
use tokio::sync::{oneshot, watch};
use tonic::Code;
use tonic::transport::server::Server;

use crate::access::{Access, AccessLayer};
use crate::banner::Banner;
use crate::clock::Clock;
use crate::config::{self, Config, ConfigErrors};
use crate::connections::Connections;
use crate::dispatch::{self, CurrentRules, Dispatcher, Leaders, LeaseTimes};
use crate::engine;
use crate::gateway::{self, CallsLayer, DeadlineLayer, Gateway, OversizeLayer, SEND_LIMIT};
use crate::health::Health;
use crate::http;
use crate::listen::{bind, take};
use crate::machine::{Node, Orchestrations, Partition, RowsView};
use crate::panics;
use crate::pressure::{self, Level, Mark, Marks, Pressure, Source as Short, Watch};
use crate::reloading::Reloading;
use crate::security::{self, Security};
use crate::spans::{self, Exporting, Spans};
use crate::telemetry::metrics::{self as names, Metrics};
use crate::throttle::{self, Requests, RestLayer, Share, Shares, Throttle, ThrottleLayer};
use crate::tls::{self, Incoming};

/// Dead connections are noticed within twice this time (R1.31).
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Streams of one connection that its client reset before anybody looked at them; one that has more is closed.
const RESETS_WAITING: usize = 20;
/// What a connection may send against the protocol, or to streams that were reset; one that sends more is closed.
const RESETS_ANSWERED: usize = 256;
/// The part of the room for requests that one connection may take, unless it is set, and its bounds in bytes.
const CONNECTION_SHARE: usize = 8;
const CONNECTION_LEAST: usize = 4 << 20;
const CONNECTION_MOST: usize = 128 << 20;
/// Room that a command needs besides the message it came in.
const COMMAND_OVERHEAD: usize = 1 << 20;
/// Longest time for leaders to move to other nodes before this one goes.
const HAND_OVER_TIME: Duration = Duration::from_secs(5);
/// Longest time for clients to take the last answers: one that does not read holds up no stop.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// How often the drain looks whether workers are done.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// Where the configuration comes from, to read it again while the node runs.
pub struct Source {
    /// Its file, if there is one.
    pub file: Option<PathBuf>,
    /// Gathers it anew.
    pub load: Box<dyn Fn() -> Result<Config, ConfigErrors> + Send + Sync>,
}

/// Whether the files that a configuration names can be used, as a start would. Nothing is created or bound.
///
/// # Errors
/// Names all that cannot be used, and why.
pub fn check(config: &Config) -> anyhow::Result<()> {
    Ok(security::check(config)?)
}

/// Runs a node until `shutdown` ends and the drain is over.
///
/// # Errors
/// When a port or the data folder cannot be taken, or serving fails.
pub async fn run(
    config: Config,
    source: Source,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let grpc = bind("grpc-addr", config.grpc_addr).await?;
    let http = bind("http-addr", config.http_addr).await?;
    let peer = take("peer-addr", config.peer_addr)?;
    let addresses = (grpc.local_addr()?, http.local_addr()?, peer.addr());

    let clock = Clock::system();
    let security = Security::start(&config, &clock).await?;
    let metrics = Metrics::install()?;
    durahub_cluster::metrics::describe();
    let connections = Connections::new(&config.limits);
    let grpc = tls::accept(grpc, security.grpc.clone(), connections.grpc(), tls::HTTP2);
    let http = tls::accept(http, security.http.clone(), connections.http(), tls::HTTP1);
    let health = Health::new(&["storage", "partitions"]);
    let pages = http::Node {
        health: health.clone(),
        metrics: metrics.clone(),
        grpc: addresses.0,
        access: security.access.clone(),
    };
    let (stop_http, http_stopped) = oneshot::channel::<()>();
    let http_stopped = async { http_stopped.await.unwrap_or(()) };
    let serving_http =
        tokio::spawn(http::serve(http, http::router(pages), metrics.clone(), http_stopped));

    let (listener, leaders) = Leaders::new(PARTITIONS_LIMIT);
    let secure = security.peers();
    let machine = Orchestrations::new(listener);
    let pressure = Pressure::new();
    set_pressure(&pressure, &config);
    let node = start_node(&config, &clock, addresses.2, machine, &secure, &pressure).await?;
    pressure.name_node(node.identity().node);
    let peers = PeerServer::start(
        peer.listen()?,
        secure,
        node.service(),
        node.admin(),
        security.operators(),
        connections.peer(),
    );
    health.pass("storage");
    let (spans, exporting) = start_spans(&config, node.identity().node, &clock)?;
    let current = CurrentRules::new(rules(&config, config.limits.max_message_bytes));
    let dispatcher = Dispatcher::new(
        dispatch_settings(&config, current.clone(), spans.clone()),
        clock.clone(),
        (1..=node.partitions()).map(|id| node.group(GroupId(id)).clone()).collect(),
    );
    let metadata = node.group(GroupId::METADATA).clone();
    let hub_names = metadata.clone();
    dispatcher.name_hubs(move |hub| hub_name(&hub_names, hub));
    let hub_names = metadata.clone();
    spans.name_hubs(move |hub| hub_name(&hub_names, hub));
    let throttle = Throttle::new(shares(&config), clock.clone());
    let measured = (dispatcher.clone(), connections.clone(), throttle.clone());
    let measure_node = node.meter();
    metrics.before_each_look(move || {
        measure_node();
        measured.0.measure();
        measured.1.measure();
        let throttle::UnderWay { bytes, waiting } = measured.2.under_way();
        gauge!(names::REQUEST_BYTES).set(bytes as f64);
        gauge!(names::REQUESTS_WAITING).set(waiting as f64);
    });
    let mut leading = leaders.run(&dispatcher);
    dispatcher.join(node.peers(), &mut leading);
    node.serve(dispatcher.program());
    leading.spawn(dispatcher.clone().reap_hubs(metadata.clone()));
    let (audit, number) = (security.audit(), node.identity().node);
    dispatcher.tell_removed(move |removed| {
        let counts = removed.by_status.iter().map(|(status, count)| (*status, *count));
        audit.note_removed(number, &removed.hub, counts);
    });
    leading.spawn(dispatcher.clone().retain(metadata.clone()));
    let folder = (!config.ephemeral).then(|| config.data_dir.clone());
    leading.spawn(Watch::start(pressure.clone(), folder).await.run());
    leading.spawn(halt_while_critical(dispatcher.clone(), pressure.level()));

    let keys = tokio::spawn(security.access.clone().keep_keys());
    let reloading = Reloading {
        started_with: config.clone(),
        source,
        security: security.clone(),
        throttle: throttle.clone(),
        pressure,
        connections,
        dispatcher: dispatcher.clone(),
    };
    let reloading = tokio::spawn(reloading.run()?);

    let (close, closing) = watch::channel(false);
    let entropy = move || clock.entropy();
    let settings = gateway_settings(&config, current, spans);
    let gateway = Gateway::new(settings, metadata, dispatcher.clone(), entropy, closing);
    tokio::pin!(shutdown);
    tokio::select! {
        created = create_hubs(&gateway, &config.task_hubs) => created?,
        // A cluster without a quorum may be stopped as well.
        () = &mut shutdown => {
            peers.stop().await;
            node.stop().await;
            return Ok(());
        }
    }
    health.pass("partitions");
    let (stop_grpc, grpc_stopped) = oneshot::channel::<()>();
    let door = Door { access: security.access.clone(), throttle, limits: config.limits };
    let serving = tokio::spawn(serve_grpc(grpc, gateway, door, async {
        grpc_stopped.await.unwrap_or(());
    }));

    announce(&config, addresses, &security);
    panics::abort_from_now_on();

    shutdown.await;
    tracing::info!("draining: no new work is handed out");
    // In this order: whoever is told that the node drains will be handed nothing by it.
    dispatcher.pause();
    health.drain();
    node.hand_over_all(HAND_OVER_TIME.min(config.limits.drain_timeout)).await;
    let drained = tokio::time::timeout(config.limits.drain_timeout, async {
        while dispatcher.is_busy() {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    });
    if drained.await.is_err() {
        tracing::warn!("drain time is over; what is still with workers will be handed out again");
    }
    // Nobody may listen any more: then the same is true.
    let _ = close.send(true);
    let _ = stop_grpc.send(());
    match tokio::time::timeout(CLOSE_TIME, serving).await {
        Ok(served) => served?.context("serve gRPC")?,
        Err(_) => tracing::warn!("clients that did not take their answers are left"),
    }
    drop(leading);
    keys.abort();
    reloading.abort();
    peers.stop().await;
    node.stop().await;
    if let Some(exporting) = exporting {
        exporting.stop().await;
    }
    let _ = stop_http.send(());
    serving_http.await?;
    security.audit().written().await;
    tracing::info!("stopped");
    Ok(())
}

/// Takes over what the configuration says of room.
pub(crate) fn set_pressure(pressure: &Pressure, config: &Config) {
    pressure.set(Short::Disk, marks(&config.storage));
    pressure.set_memory_budget(memory_budget(config));
}

fn memory_budget(config: &Config) -> Option<u64> {
    config.memory_budget.or_else(pressure::memory_limit)
}

/// Bytes of the storage cache: what is asked for, or a share of the memory that there may be.
fn cache_bytes(config: &Config) -> u64 {
    match config.cache_mb {
        0 => pressure::cache_share(memory_budget(config)),
        mb => mb << 20,
    }
}

fn marks(storage: &config::Storage) -> Marks {
    let mark = |space: config::FreeSpace| match space {
        config::FreeSpace::Auto => Mark::Auto,
        config::FreeSpace::Bytes(bytes) => Mark::Bytes(bytes),
        config::FreeSpace::Percent(share) => Mark::Percent(share),
    };
    Marks { low: mark(storage.low_free), critical: mark(storage.critical_free) }
}

/// No work is handed out while the node is critically short of room.
async fn halt_while_critical(dispatcher: Dispatcher, mut level: watch::Receiver<Level>) {
    loop {
        dispatcher.set_halted(*level.borrow_and_update() == Level::Critical);
        if level.changed().await.is_err() {
            return;
        }
    }
}

/// How much one hub and one connection may ask.
pub(crate) fn shares(config: &Config) -> Shares {
    let limits = &config.limits;
    let bytes = limits.request_bytes.unwrap_or_else(|| {
        let least = limits.connection_request_bytes.unwrap_or(0);
        pressure::request_share(memory_budget(config)).max(least)
    });
    let connection_bytes = limits
        .connection_request_bytes
        .unwrap_or_else(|| (bytes / CONNECTION_SHARE).clamp(CONNECTION_LEAST, CONNECTION_MOST));
    let share = |per_second, in_flight| Share { per_second, in_flight };
    Shares {
        hub: share(limits.hub_calls_per_second, limits.hub_calls_in_flight),
        connection: share(limits.connection_calls_per_second, limits.connection_calls_in_flight),
        unread_bytes: limits.connection_unread_bytes,
        requests: Requests {
            bytes,
            connection_bytes,
            streams: limits.connection_streams,
            longest: limits.max_message_bytes,
            time: limits.request_time,
        },
    }
}

/// Creates the hubs that shall exist, as soon as the cluster has a leader that can.
async fn create_hubs(gateway: &Gateway, names: &[String]) -> anyhow::Result<()> {
    for hub in names {
        loop {
            match gateway.create_hub(hub).await {
                Ok(_) => break,
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown) => {
                    tracing::info!(hub, reason = status.message(), "waiting for the cluster");
                    tokio::time::sleep(DRAIN_LOOK).await;
                }
                Err(status) => {
                    return Err(status).with_context(|| format!("create the task hub {hub}"));
                }
            }
        }
    }
    Ok(())
}

async fn start_node(
    config: &Config,
    clock: &Clock,
    peer: SocketAddr,
    machine: Orchestrations,
    secure: &Arc<dyn Secure>,
    pressure: &Pressure,
) -> anyhow::Result<Node> {
    let storage = match config.ephemeral {
        true => Storage::Memory,
        false => Storage::Folder(config.data_dir.clone()),
    };
    let clock = clock.clone();
    let stamp = Arc::new(move || (clock.now(), clock.entropy()));
    let mut settings =
        NodeConfig::new(config.node_id.unwrap_or(0), storage, config.partitions, stamp);
    settings.cache_bytes = cache_bytes(config);
    let options = &mut settings.options;
    let listed = config.node_id.and_then(|id| config.initial_cluster.get(&id)).cloned();
    let advertised = config.advertise_peer.clone().or(listed);
    options.peer_address = advertised.unwrap_or_else(|| peer.to_string());
    options.initial_members = config.initial_cluster.clone();
    options.join = config.join.clone();
    options.zone = config.zone.clone();
    options.replication_factor = config.replication_factor;
    options.snapshot_every = config.snapshot_every;
    options.keep_entries = config.snapshot_every / 5;
    options.command_bytes = config.limits.max_message_bytes + COMMAND_OVERHEAD;
    let expelled = Arc::clone(&options.expelled);
    options.secure = Arc::clone(secure);
    let short = pressure.clone();
    options.disk_is_short = Arc::new(move || short.is_disk_short());
    let pressure = pressure.clone();
    options.admit = Arc::new(move |demand| pressure.admit(demand));
    let transport = GrpcTransport::new(Arc::clone(secure), move |text| expelled(text));
    options.transport = Arc::new(transport);
    Ok(Node::start(settings, Arc::new(machine)).await?)
}

/// Spans go to the collector, if there is one.
fn start_spans(
    config: &Config,
    node: u64,
    clock: &Clock,
) -> anyhow::Result<(Spans, Option<Exporting>)> {
    let tracing = &config.tracing;
    let Some(endpoint) = tracing.endpoint.clone() else { return Ok((Spans::off(), None)) };
    let settings = spans::Settings {
        endpoint,
        ca_file: tracing.ca_file.clone(),
        headers_file: tracing.headers_file.clone(),
        sampling_ratio: tracing.sampling_ratio.as_f64(),
        service_name: tracing.service_name.clone(),
        resource: tracing.resource_attributes.clone(),
        node,
    };
    let started = Spans::start(settings, clock.clone()).context("set up tracing (tracing)")?;
    Ok((started.0, Some(started.1)))
}

/// The name of a hub, as far as this node has heard of it.
fn hub_name(metadata: &Partition, id: u32) -> Option<String> {
    let hubs = metadata.peek(|rows| engine::read::hubs(&RowsView(rows)));
    hubs.into_iter().find_map(|(name, hub)| (hub.id == id).then_some(name))
}

pub(crate) fn dispatch_settings(
    config: &Config,
    rules: CurrentRules,
    spans: Spans,
) -> dispatch::Settings {
    let limits = &config.limits;
    dispatch::Settings {
        leases: LeaseTimes {
            turn: limits.orchestrator_lease,
            entity: limits.entity_lease,
            activity: limits.activity_lease,
            grace: limits.redelivery_grace,
        },
        health_ping: limits.health_ping,
        item_bytes: SEND_LIMIT,
        stream_history_above: limits.stream_history_above,
        rules,
        spans,
    }
}

/// What the configuration says of instances. The size of a message is fixed when the ports open.
pub(crate) fn rules(config: &Config, message_bytes: usize) -> dispatch::Rules {
    let (limits, retention) = (&config.limits, &config.retention);
    let config::Retention { completed, failed, terminated } = *retention;
    dispatch::Rules {
        limits: dispatch::Limits {
            engine: engine::Limits {
                history_events: limits.max_history_events,
                history_bytes: limits.max_history_bytes as u64,
                waiting_events: limits.max_waiting_events,
                pending: limits.max_pending_per_instance,
            },
            payload_bytes: limits.max_payload_bytes,
            custom_status_bytes: limits.max_custom_status_bytes,
            name_length: limits.max_name_length,
            tags_bytes: limits.max_tags_bytes,
            completion_bytes: message_bytes,
        },
        instance_id_length: limits.max_instance_id_length,
        retention: dispatch::Retention { completed, failed, terminated },
    }
}

fn gateway_settings(config: &Config, rules: CurrentRules, spans: Spans) -> gateway::Settings {
    gateway::Settings {
        message_bytes: config.limits.max_message_bytes,
        dynamic_hubs: config.dynamic_task_hubs,
        rules,
        hub_calls: config.task_hub_calls,
        spans,
    }
}

/// What every call of the gRPC port passes.
struct Door {
    access: Access,
    throttle: Throttle,
    limits: config::Limits,
}

async fn serve_grpc(
    incoming: Incoming,
    gateway: Gateway,
    door: Door,
    stopped: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let sidecar = "TaskHubSidecarService";
    reporter.set_service_status(sidecar, tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(durahub_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(durahub_proto::OWN_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let Door { access, throttle: shared, limits } = door;
    let (stream_window, connection_window) = throttle::windows(limits.connection_streams);
    Server::builder()
        .max_concurrent_streams(limits.connection_streams)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .http2_max_header_list_size(throttle::HEADER_BYTES)
        // A client that opens streams and resets them at once, and one that makes the server reset them.
        .http2_max_pending_accept_reset_streams(Some(RESETS_WAITING))
        .http2_max_local_error_reset_streams(Some(RESETS_ANSWERED))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(CallsLayer::new())
        .layer(AccessLayer(access))
        // Of callers that are let in: what strangers send counts against their connection.
        .layer(RestLayer)
        .layer(ThrottleLayer(shared))
        .layer(DeadlineLayer)
        .layer(OversizeLayer { limit: limits.max_message_bytes })
        .add_service(gateway.sidecar())
        .add_service(gateway.hub_service())
        .add_service(gateway.entity_service())
        .add_service(gateway.scaler())
        .add_service(health)
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming, stopped)
        .await?;
    Ok(())
}

/// Tells a person where to connect, and a program which addresses were bound.
fn announce(
    config: &Config,
    (grpc, http, peer): (SocketAddr, SocketAddr, SocketAddr),
    security: &Security,
) {
    let data = config.data_dir.display().to_string();
    let banner = Banner {
        grpc,
        http,
        peer,
        hubs: &config.task_hubs,
        data: (!config.ephemeral).then_some(&data),
        closed: security.closed(),
    };
    for variable in &config.unused {
        tracing::warn!(%variable, "not used, and nothing is sent to a collector of traces");
    }
    if let Some(warning) = banner.warning() {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = security.closed().joins_warning() {
        tracing::warn!("{warning}");
    }
    // A closed standard output is no reason not to serve.
    let _ = std::io::stdout().write_all(banner.text().as_bytes());
    tracing::info!(%grpc, %http, %peer, connect = banner.connection_string(), "listening");
}
