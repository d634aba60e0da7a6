//! `durahub entity`: what entities hold, and who holds them.

use clap::{Args, Subcommand};
use durahub_proto::{own, wire};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::connect::{Output, ServerArgs};
use super::failure::{EXIT_CODES, Failure, Reason};
use super::instance::parse_time;
use super::show;

/// Most entities that a page may have.
const PAGE_MAX: usize = 1000;

/// Shows entities and their locks.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(super) struct EntityArgs {
    #[command(subcommand)]
    command: EntityCommand,
    /// Task hub of the entities
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "DURAHUB_TASK_HUB",
        default_value = "default",
        help_heading = "Server"
    )]
    task_hub: String,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum EntityCommand {
    /// Show one entity with its state.
    Get {
        /// Its id: @name@key
        id: String,
    },
    /// List entities by id; with times, by their last change.
    List {
        /// Only ids that begin with this
        #[arg(long, value_name = "TEXT")]
        prefix: Option<String>,
        /// Only those changed at this time or later
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        changed_from: Option<Timestamp>,
        /// Only those changed at this time or before
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        changed_to: Option<Timestamp>,
        /// Also those that have no state but are locked or waited for
        #[arg(long)]
        transient: bool,
        /// Show at most so many
        #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "all")]
        limit: usize,
        /// Show all of them
        #[arg(long)]
        all: bool,
    },
    /// List the entities that are locked or that a lock is waited for: who holds them, since when, who is next.
    Locks {
        /// Only ids that begin with this
        #[arg(long, value_name = "TEXT", default_value = "")]
        prefix: String,
    },
}

/// Runs one command.
pub(super) async fn run(args: EntityArgs) -> anyhow::Result<()> {
    let EntityArgs { command, task_hub, server } = args;
    match command {
        EntityCommand::Get { id } => get(&server, &task_hub, &id).await,
        EntityCommand::List { prefix, changed_from, changed_to, transient, limit, all } => {
            let query = wire::EntityQuery {
                instance_id_starts_with: prefix.as_deref().map(Into::into),
                last_modified_from: changed_from,
                last_modified_to: changed_to,
                include_transient: transient,
                ..Default::default()
            };
            list(&server, &task_hub, query, if all { usize::MAX } else { limit }).await
        }
        EntityCommand::Locks { prefix } => locks(&server, &task_hub, prefix).await,
    }
}

async fn get(server: &ServerArgs, hub: &str, id: &str) -> anyhow::Result<()> {
    let request = wire::GetEntityRequest { instance_id: id.to_owned(), include_state: true };
    let mut rpc = server.hub(hub).await?;
    let answer = rpc.get_entity(request).await.map_err(Failure::from)?.into_inner();
    let entity = answer.entity.filter(|_| answer.exists).ok_or_else(|| {
        Failure::new(Reason::NotFound, format!("there is no entity {}", show::safe(id)))
    })?;
    match server.output {
        Output::Table => {
            let mut rows = vec![
                ("Entity", show::safe(&entity.instance_id)),
                ("Changed", show::time(entity.last_modified_time.as_ref())),
                ("Waiting", entity.backlog_queue_size.to_string()),
            ];
            let mut text = |name, value: &Option<durahub_proto::Text>| {
                rows.extend(value.iter().map(|value| (name, show::safe(value.as_str()))));
            };
            text("Locked by", &entity.locked_by);
            text("State", &entity.serialized_state);
            show::print(&show::pairs(&rows))
        }
        Output::Json => show::print_json(&entity_json(&entity)),
    }
}

fn entity_json(entity: &wire::EntityMetadata) -> Value {
    let mut json = json!({
        "entityId": entity.instance_id,
        "lastModifiedAt": show::time(entity.last_modified_time.as_ref()),
        "waitingOperations": entity.backlog_queue_size,
    });
    for (name, text) in [("lockedBy", &entity.locked_by), ("state", &entity.serialized_state)] {
        if let Some(text) = text {
            json[name] = text.as_str().into();
        }
    }
    json
}

async fn list(
    server: &ServerArgs,
    hub: &str,
    mut query: wire::EntityQuery,
    limit: usize,
) -> anyhow::Result<()> {
    let mut rpc = server.hub(hub).await?;
    let (mut entities, mut more) = (Vec::new(), false);
    while entities.len() < limit {
        query.page_size = Some((limit - entities.len()).min(PAGE_MAX) as i32);
        let request = wire::QueryEntitiesRequest { query: Some(query.clone()) };
        let page = rpc.query_entities(request).await.map_err(Failure::from)?.into_inner();
        entities.extend(page.entities);
        query.continuation_token = page.continuation_token.filter(|token| !token.is_empty());
        more = query.continuation_token.is_some();
        if !more {
            break;
        }
    }
    match server.output {
        Output::Table => {
            let head = ["ENTITY", "CHANGED", "WAITING", "LOCKED BY"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(entities.iter().map(|entity| {
                vec![
                    show::safe(&entity.instance_id),
                    show::time(entity.last_modified_time.as_ref()),
                    entity.backlog_queue_size.to_string(),
                    entity
                        .locked_by
                        .as_ref()
                        .map_or_else(|| "-".into(), |by| show::safe(by.as_str())),
                ]
            }));
            let rest = if more { "there are more; see --limit and --all\n" } else { "" };
            show::print(&(show::table(&rows) + rest))
        }
        Output::Json => {
            let entities: Vec<Value> = entities.iter().map(entity_json).collect();
            show::print_json(&json!({ "entities": entities, "hasMore": more }))
        }
    }
}

async fn locks(server: &ServerArgs, hub: &str, prefix: String) -> anyhow::Result<()> {
    let mut rpc = server.entities(hub).await?;
    let (mut locks, mut after) = (Vec::new(), String::new());
    loop {
        let request = own::ListEntityLocksRequest { after, page_size: 0, prefix: prefix.clone() };
        let page = rpc.list_entity_locks(request).await.map_err(Failure::from)?.into_inner();
        locks.extend(page.locks);
        after = page.next_after;
        if after.is_empty() {
            break;
        }
    }
    match server.output {
        Output::Table => {
            let head = ["ENTITY", "HELD BY", "SINCE", "WAITING", "NEXT", "WAITS SINCE"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(locks.iter().map(|lock| {
                let party = |party: Option<&own::LockParty>| match party {
                    Some(party) => {
                        [show::safe(&party.instance_id), show::time(time(party).as_ref())]
                    }
                    None => ["-".to_owned(), "-".to_owned()],
                };
                let [holder, since] = party(lock.holder.as_ref());
                let [next, waits] = party(lock.first_waiting.first());
                let waiting = lock.waiting.to_string();
                vec![show::safe(&lock.entity_id), holder, since, waiting, next, waits]
            }));
            show::print(&show::table(&rows))
        }
        Output::Json => {
            let party = |party: &own::LockParty| {
                json!({
                    "instanceId": party.instance_id,
                    "criticalSectionId": party.critical_section_id,
                    "since": time(party).map(|time| time.to_string()),
                })
            };
            let locks = locks.iter().map(|lock| {
                json!({
                    "entityId": lock.entity_id,
                    "holder": lock.holder.as_ref().map(party),
                    "waiting": lock.waiting,
                    "firstWaiting": lock.first_waiting.iter().map(party).collect::<Vec<_>>(),
                    "waitingOperations": lock.operations,
                })
            });
            show::print_json(&json!({ "locks": locks.collect::<Vec<_>>() }))
        }
    }
}

/// Since when; `None` if that is not known.
fn time(party: &own::LockParty) -> Option<Timestamp> {
    let nanos = party.since;
    (nanos != 0).then(|| Timestamp {
        seconds: nanos.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default(),
    })
}
