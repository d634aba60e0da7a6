//! What each call needs: one table for all ports, and nothing is allowed that does not stand in it.
//!
//! A call is named by its path: `/SERVICE/METHOD` of gRPC, or the path of a page. `tests/access.rs` compares
//! the table with the descriptors of all services, so a new call without a row fails there.

use super::roles::{Grant, Role};

/// What a caller needs to be allowed a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: probes cannot say who they are.
    Nothing,
    /// To be somebody.
    Identity,
    /// To read in the task hub: reader, contributor or admin.
    Read,
    /// To read in the task hub that the request names: the door asks only who calls, the handler asks
    /// [`may_read`](super::Identity::may_read).
    ReadNamed,
    /// To work in the task hub: worker, contributor or admin.
    Work,
    /// To read or to work there: a worker asks for long histories.
    ReadOrWork,
    /// To change instances of the task hub: contributor or admin.
    Contribute,
    /// To change the task hub itself: admin.
    Administer,
    /// To look at the node and the cluster: reader, contributor or admin of all task hubs.
    Observe,
    /// To operate the cluster: admin of all task hubs.
    Operate,
    /// To be a node of the cluster: what the certificate at the peer port says.
    Node,
    /// Known to the protocol and not served: whoever is somebody hears `UNIMPLEMENTED` (R1.3, R1.4).
    Unserved,
}

impl Needs {
    /// Whether these grants are enough, in a task hub where it is about one.
    pub(super) fn met_by(self, grants: &[Grant], hub: &str) -> bool {
        let here = |roles: &[Role]| {
            grants.iter().any(|grant| grant.covers(hub) && roles.contains(&grant.role))
        };
        let everywhere = |roles: &[Role]| {
            grants.iter().any(|grant| grant.is_everywhere() && roles.contains(&grant.role))
        };
        match self {
            Needs::Nothing | Needs::Identity | Needs::ReadNamed | Needs::Unserved => true,
            Needs::Read => here(&[Role::Reader, Role::Contributor, Role::Admin]),
            Needs::Work => here(&[Role::Worker, Role::Contributor, Role::Admin]),
            Needs::ReadOrWork => here(&Role::ALL),
            Needs::Contribute => here(&[Role::Contributor, Role::Admin]),
            Needs::Administer => here(&[Role::Admin]),
            Needs::Observe => everywhere(&[Role::Reader, Role::Contributor, Role::Admin]),
            Needs::Operate => everywhere(&[Role::Admin]),
            Needs::Node => false,
        }
    }

    /// The least that would be enough, for the text of a refusal.
    pub(super) fn least(self) -> &'static str {
        match self {
            Needs::Nothing | Needs::Identity | Needs::Unserved => "no role",
            Needs::Read | Needs::ReadNamed => "the role reader in it",
            Needs::Work => "the role worker in it",
            Needs::ReadOrWork => "the role reader or worker in it",
            Needs::Contribute => "the role contributor in it",
            Needs::Administer => "the role admin in it",
            Needs::Observe => "the role reader in all task hubs (reader@*)",
            Needs::Operate => "the role admin in all task hubs (admin@*)",
            Needs::Node => "the certificate of a node",
        }
    }

    /// Whether it is about one task hub.
    pub(super) fn is_about_a_hub(self) -> bool {
        matches!(
            self,
            Needs::Read | Needs::Work | Needs::ReadOrWork | Needs::Contribute | Needs::Administer
        )
    }
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its path.
    pub path: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// Whether it goes into the audit log also when it is allowed.
    pub audited: bool,
}

impl Call {
    /// The last part of its path, as in `StartInstance`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('/').map_or(self.path, |(_, name)| name)
    }

    /// Whether it may last as long as its caller likes: then it ends with the caller's credentials.
    pub(super) fn lasts(&self) -> bool {
        LASTING.contains(&self.path)
    }
}

/// Calls that may last as long as their caller likes.
const LASTING: &[&str] = &[
    "/TaskHubSidecarService/GetWorkItems",
    "/TaskHubSidecarService/WaitForInstanceStart",
    "/TaskHubSidecarService/WaitForInstanceCompletion",
    "/TaskHubSidecarService/StreamInstanceHistory",
    "/externalscaler.ExternalScaler/StreamIsActive",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

const fn call(path: &'static str, needs: Needs) -> Call {
    Call { path, needs, audited: false }
}

/// An administrative or lifecycle action.
const fn action(path: &'static str, needs: Needs) -> Call {
    Call { path, needs, audited: true }
}

macro_rules! unserved {
    ($service:literal: $($method:literal)*) => {
        [$(call(concat!("/", $service, "/", $method), Needs::Unserved)),*]
    };
}

/// Calls of the gRPC port that are served.
const SERVED: &[Call] = &[
    call("/TaskHubSidecarService/Hello", Needs::Identity),
    action("/TaskHubSidecarService/StartInstance", Needs::Contribute),
    call("/TaskHubSidecarService/GetInstance", Needs::Read),
    action("/TaskHubSidecarService/RewindInstance", Needs::Contribute),
    action("/TaskHubSidecarService/RestartInstance", Needs::Contribute),
    call("/TaskHubSidecarService/WaitForInstanceStart", Needs::Read),
    call("/TaskHubSidecarService/WaitForInstanceCompletion", Needs::Read),
    call("/TaskHubSidecarService/RaiseEvent", Needs::Contribute),
    action("/TaskHubSidecarService/TerminateInstance", Needs::Contribute),
    action("/TaskHubSidecarService/SuspendInstance", Needs::Contribute),
    action("/TaskHubSidecarService/ResumeInstance", Needs::Contribute),
    call("/TaskHubSidecarService/QueryInstances", Needs::Read),
    call("/TaskHubSidecarService/ListInstanceIds", Needs::Read),
    action("/TaskHubSidecarService/PurgeInstances", Needs::Contribute),
    call("/TaskHubSidecarService/GetWorkItems", Needs::Work),
    call("/TaskHubSidecarService/CompleteActivityTask", Needs::Work),
    call("/TaskHubSidecarService/CompleteOrchestratorTask", Needs::Work),
    call("/TaskHubSidecarService/CompleteEntityTask", Needs::Work),
    call("/TaskHubSidecarService/StreamInstanceHistory", Needs::ReadOrWork),
    action("/TaskHubSidecarService/CreateTaskHub", Needs::Administer),
    action("/TaskHubSidecarService/DeleteTaskHub", Needs::Administer),
    call("/TaskHubSidecarService/SignalEntity", Needs::Contribute),
    call("/TaskHubSidecarService/GetEntity", Needs::Read),
    call("/TaskHubSidecarService/QueryEntities", Needs::Read),
    action("/TaskHubSidecarService/CleanEntityStorage", Needs::Contribute),
    call("/TaskHubSidecarService/AbandonTaskActivityWorkItem", Needs::Work),
    call("/TaskHubSidecarService/AbandonTaskOrchestratorWorkItem", Needs::Work),
    call("/TaskHubSidecarService/AbandonTaskEntityWorkItem", Needs::Work),
    action("/TaskHubSidecarService/SkipGracefulOrchestrationTerminations", Needs::Contribute),
    // The answer holds only the hubs in which the caller has a role.
    call("/durahub.v1.TaskHubService/ListTaskHubs", Needs::Identity),
    action("/durahub.v1.TaskHubService/SetRetention", Needs::Administer),
    call("/durahub.v1.EntityService/ListEntityLocks", Needs::Read),
    // KEDA names the task hub in the request, and sends no headers.
    call("/externalscaler.ExternalScaler/IsActive", Needs::ReadNamed),
    call("/externalscaler.ExternalScaler/StreamIsActive", Needs::ReadNamed),
    call("/externalscaler.ExternalScaler/GetMetricSpec", Needs::ReadNamed),
    call("/externalscaler.ExternalScaler/GetMetrics", Needs::ReadNamed),
    call("/grpc.health.v1.Health/Check", Needs::Nothing),
    call("/grpc.health.v1.Health/Watch", Needs::Nothing),
    call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Needs::Identity),
];

/// Calls of the peer port.
const PEER: &[Call] = &[
    call("/durahub.peer.v1.Peer/Link", Needs::Node),
    call("/durahub.peer.v1.Peer/InstallSnapshot", Needs::Node),
    call("/durahub.peer.v1.Peer/Identify", Needs::Node),
    call("/durahub.peer.v1.Peer/Join", Needs::Node),
    call("/durahub.peer.v1.Admin/Status", Needs::Observe),
    action("/durahub.peer.v1.Admin/AddNode", Needs::Operate),
    action("/durahub.peer.v1.Admin/RemoveNode", Needs::Operate),
    action("/durahub.peer.v1.Admin/TransferLeader", Needs::Operate),
    action("/durahub.peer.v1.Admin/Drain", Needs::Operate),
];

/// Pages of the HTTP port.
const PAGES: &[Call] = &[
    call("/livez", Needs::Nothing),
    call("/readyz", Needs::Nothing),
    call("/health", Needs::Nothing),
    call("/metrics", Needs::Observe),
    call("/", Needs::Identity),
];

const BACKEND: &[Call] = &unserved!(
    "durabletask.protos.backend.v1.BackendService":
    "CreateInstance" "AddEvent" "AddEvents" "GetInstance" "GetEntity" "QueryInstances" "QueryEntities"
    "WaitForInstance" "PurgeInstances" "RestartInstance" "CleanEntityStorage" "GetWorkItems"
    "GetOrchestrationRuntimeState" "StreamInstanceHistory" "CompleteActivityWorkItem"
    "AbandonActivityWorkItem" "CompleteOrchestrationWorkItem"
    "CompleteOrchestrationWorkItemWithExtendedSession" "AbandonOrchestrationWorkItem"
    "ReleaseOrchestrationWorkItem" "CompleteEntityWorkItem" "CompleteEntityWorkItemWithExtendedSession"
    "AbandonEntityWorkItem" "ReleaseEntityWorkItem" "Ping" "GetMetrics"
    "SkipGracefulOrchestrationTerminations" "BeginWorkerDrain"
);

const SANDBOX: &[Call] = &unserved!(
    "microsoft.durabletask.sandboxes.SandboxActivities":
    "ConnectSandboxActivityWorker" "DeclareSandboxWorkerProfile" "RemoveSandboxWorkerProfile"
);

/// Every call of every port.
pub fn all() -> impl Iterator<Item = &'static Call> {
    [SERVED, PEER, PAGES, BACKEND, SANDBOX].into_iter().flatten()
}

/// The call of the gRPC port with this path.
#[must_use]
pub fn rpc(path: &str) -> Option<&'static Call> {
    [SERVED, BACKEND, SANDBOX].into_iter().flatten().find(|call| call.path == path)
}

/// The operators' call of the peer port with this name.
pub(super) fn operator(method: &str) -> Option<&'static Call> {
    let is = |call: &&Call| call.path.strip_prefix("/durahub.peer.v1.Admin/") == Some(method);
    PEER.iter().find(is)
}

/// The page with this path.
pub(super) fn page(path: &str) -> Option<&'static Call> {
    PAGES.iter().find(|call| call.path == path)
}
