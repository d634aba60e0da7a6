//! What client programs call (section 2).

use std::time::Duration;

use durahub_cluster::Error;
use durahub_proto::wire;
use prost::Message as _;
use tonic::{Response, Status};

use super::list::reach;
use super::{Gateway, SEND_LIMIT, status};
use crate::dispatch::{self, Wanted};
use crate::engine::command::{RaiseEvent, Resume, Start, Suspend, Terminate};
use crate::engine::read::{self, OfHead, OfState, State};
use crate::engine::state::is_entity;
use crate::engine::{Address, Command, Reply};
use crate::machine::RowsView;
use crate::throttle::{Held, Unread};

/// How long a wait for an unknown instance goes on (R2.36).
const UNKNOWN_WAIT: Duration = Duration::from_secs(30);
/// Pause before a wait that found no leader looks for one again.
const LEADER_PAUSE: Duration = Duration::from_millis(200);
/// A wait looks at the rows of this node so often without being woken: where a replica catches up by a snapshot,
/// nobody is.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

impl Gateway {
    pub(super) async fn start(
        &self,
        hub: u32,
        mut request: wire::CreateInstanceRequest,
    ) -> Result<wire::CreateInstanceResponse, Status> {
        if request.instance_id.is_empty() {
            request.instance_id = self.new_id();
        }
        self.check_id(&request.instance_id)?;
        if is_entity(&request.instance_id) {
            return Err(Status::invalid_argument(
                "instanceId: '@name@key' names an entity; an orchestration needs another id",
            ));
        }
        if request.name.is_empty() {
            return Err(Status::invalid_argument("name: must name the orchestration to start"));
        }
        if let Some(execution) = &request.execution_id {
            // Every work item carries it: it has to be short (R1.23).
            self.check_length("executionId", execution.as_str())?;
        }
        self.limits().check_start(&request).map_err(Status::invalid_argument)?;
        let instance = request.instance_id.clone();
        let command = Command::Start(Start { hub, request });
        match self.propose(hub, &instance, command).await? {
            Reply::Started { instance } => {
                Ok(wire::CreateInstanceResponse { instance_id: instance })
            }
            other => Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
    }

    pub(super) async fn get(
        &self,
        hub: u32,
        request: &wire::GetInstanceRequest,
        unread: &Unread,
    ) -> Result<Response<wire::GetInstanceResponse>, Status> {
        // Orchestration calls never see entities (R2.104).
        if is_entity(&request.instance_id) {
            return Ok(nothing());
        }
        let at = Address::new(hub, request.instance_id.clone());
        let payloads = request.get_inputs_and_outputs;
        let partition = self.0.dispatcher.partition_of(hub, &at.instance);
        let reached = reach(partition).await?;
        let room = self.room(unread).await?;
        let found = reached.glance(OfState { at, payloads, limit: SEND_LIMIT as u64 }).await;
        shown(found.map_err(|error| status::of_cluster(&error))?, room)
    }

    /// Waits until an instance has started or ended; the client's deadline is the only limit (R2.34). Once it
    /// has begun it survives any change of leader.
    pub(super) async fn wait(
        &self,
        hub: u32,
        request: wire::GetInstanceRequest,
        wanted: Wanted,
        unread: &Unread,
    ) -> Result<Response<wire::GetInstanceResponse>, Status> {
        if is_entity(&request.instance_id) {
            return Ok(nothing());
        }
        let at = Address::new(hub, request.instance_id.clone());
        let partition = self.0.dispatcher.partition_of(hub, &at.instance);
        let mut closed = std::pin::pin!(self.closed());
        let mut unknown = std::pin::pin!(tokio::time::sleep(UNKNOWN_WAIT));
        let payloads = request.get_inputs_and_outputs;
        let (mut has_begun, mut was_known) = (false, false);
        loop {
            // Registered before reading: what happens in between is not missed.
            let mut waiter = self.0.dispatcher.wait_for(&at, wanted);
            let mut reads_here = false;
            let seen = async {
                let reached = dispatch::reach(partition).await?;
                reads_here = reached.is_here();
                let head = reached.glance(OfHead { at: at.clone() }).await?.record;
                let status = head.map(|head| head.status());
                if !status.is_some_and(|status| wanted.is_met_by(status)) {
                    return Ok((status, None));
                }
                let Ok(room) = self.room(unread).await else { return Err(Error::Stopping) };
                let query = OfState { at: at.clone(), payloads, limit: SEND_LIMIT as u64 };
                let state = reached.glance(query).await?;
                let status = match &state.state {
                    Some(state) => Some(state.orchestration_status()),
                    None if state.too_large.is_none() => None,
                    None => {
                        let head = reached.glance(OfHead { at: at.clone() }).await?.record;
                        head.map(|head| head.status())
                    }
                };
                let is_met = status.is_some_and(|status| wanted.is_met_by(status));
                Ok((status, Some((state, is_met, room))))
            };
            let again = match seen.await {
                Ok((_, Some((state, is_met, room)))) => {
                    (has_begun, was_known) = (true, true);
                    if is_met {
                        return shown(state, room);
                    }
                    // It began anew while there was no room: the wait goes on.
                    continue;
                }
                // It was there and is gone: purged (R2.37).
                Ok((None, _)) if was_known => return Ok(nothing()),
                Ok((known, _)) => {
                    (has_begun, was_known) = (true, was_known | known.is_some());
                    false
                }
                // Nothing is lost by going on: there will be a leader again.
                Err(Error::NotLeader { .. }) if has_begun => true,
                Err(error) => return Err(status::of_cluster(&error)),
            };
            let changed = async {
                if again {
                    return tokio::time::sleep(LEADER_PAUSE).await;
                }
                let status_of = |rows: &dyn durahub_cluster::Rows| {
                    read::head(&RowsView(rows), &at).map(|record| record.status())
                };
                // A replica here that is far behind will be told late.
                if !reads_here {
                    return self.0.dispatcher.wait_there(&at, wanted, was_known).await;
                }
                loop {
                    let pause = tokio::time::sleep(LOOK_AGAIN);
                    tokio::select! {
                        () = pause => {}
                        // It is waited for where it is now.
                        () = partition.gone() => return,
                    }
                    let Some(status) = partition.look(status_of) else { return };
                    if status.map_or(was_known, |status| wanted.is_met_by(status)) {
                        return;
                    }
                }
            };
            tokio::select! {
                () = waiter.woken() => {}
                () = changed => {}
                () = &mut unknown, if !was_known => return Ok(nothing()),
                () = &mut closed => {
                    return Err(Status::unavailable("this server is shutting down; wait again"));
                }
            }
        }
    }

    pub(super) async fn raise(
        &self,
        hub: u32,
        request: wire::RaiseEventRequest,
    ) -> Result<wire::RaiseEventResponse, Status> {
        if request.name.is_empty() {
            return Err(Status::invalid_argument("name: must name the event to raise"));
        }
        let limits = self.limits();
        limits
            .check_name("name", &request.name)
            .and_then(|()| limits.check_payload("input", request.input.as_ref()))
            .map_err(Status::invalid_argument)?;
        let instance = request.instance_id.clone();
        let command = Command::RaiseEvent(RaiseEvent { hub, request });
        self.propose(hub, &instance, command).await?;
        Ok(wire::RaiseEventResponse {})
    }

    pub(super) async fn terminate(
        &self,
        hub: u32,
        request: wire::TerminateRequest,
    ) -> Result<wire::TerminateResponse, Status> {
        self.check_payload("output", request.output.as_ref())?;
        let instance = request.instance_id.clone();
        let command = Command::Terminate(Terminate { hub, request });
        self.propose(hub, &instance, command).await?;
        self.note_done(hub, &instance, "termination requested");
        Ok(wire::TerminateResponse {})
    }

    pub(super) async fn suspend(
        &self,
        hub: u32,
        request: wire::SuspendRequest,
    ) -> Result<wire::SuspendResponse, Status> {
        self.check_payload("reason", request.reason.as_ref())?;
        let instance = request.instance_id.clone();
        let command = Command::Suspend(Suspend { hub, request });
        self.propose(hub, &instance, command).await?;
        self.note_done(hub, &instance, "suspended");
        Ok(wire::SuspendResponse {})
    }

    pub(super) async fn resume(
        &self,
        hub: u32,
        request: wire::ResumeRequest,
    ) -> Result<wire::ResumeResponse, Status> {
        self.check_payload("reason", request.reason.as_ref())?;
        let instance = request.instance_id.clone();
        let command = Command::Resume(Resume { hub, request });
        self.propose(hub, &instance, command).await?;
        self.note_done(hub, &instance, "resumed");
        Ok(wire::ResumeResponse {})
    }
}

/// What is answered of an instance that is not there.
fn nothing() -> Response<wire::GetInstanceResponse> {
    Response::new(wire::GetInstanceResponse::default())
}

/// The state of an instance, unless no client could receive it (R1.23).
fn shown(state: State, room: Held) -> Result<Response<wire::GetInstanceResponse>, Status> {
    let State { state, too_large } = state;
    let answer = wire::GetInstanceResponse { exists: state.is_some(), orchestration_state: state };
    let bytes = too_large.unwrap_or_else(|| answer.encoded_len() as u64);
    if bytes > SEND_LIMIT as u64 {
        return Err(Status::resource_exhausted(format!(
            "the state of this instance takes {bytes} bytes, the limit of a message is {SEND_LIMIT}; \
             ask without inputs and outputs"
        )));
    }
    Ok(room.answer(answer))
}
