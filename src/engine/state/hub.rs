//! Task hubs, kept in the metadata group.

/// A task hub. Its number never returns, so rows of a deleted hub cannot come back under its name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HubRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Number of the hub, part of every key of its instances.
    #[prost(uint32, tag = "2")]
    pub id: u32,
    /// Nanoseconds since the Unix epoch.
    #[prost(int64, tag = "3")]
    pub created: i64,
    /// How long ended instances stay; unset is all as the servers are configured.
    #[prost(message, optional, tag = "4")]
    pub retention: Option<RetentionRecord>,
}

/// How long the ended instances of a hub stay, by the status in which they ended, in milliseconds from their
/// end; 0 keeps them for ever, unset is as the servers are configured.
#[derive(Clone, Copy, Eq, PartialEq, prost::Message)]
pub struct RetentionRecord {
    /// Those that completed.
    #[prost(uint64, optional, tag = "1")]
    pub completed: Option<u64>,
    /// Those that failed.
    #[prost(uint64, optional, tag = "2")]
    pub failed: Option<u64>,
    /// Those that were terminated.
    #[prost(uint64, optional, tag = "3")]
    pub terminated: Option<u64>,
}

/// A hub whose name is free and whose instances are being removed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeletedHubRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Number of the hub.
    #[prost(uint32, tag = "2")]
    pub id: u32,
    /// The name that it had.
    #[prost(string, tag = "3")]
    pub name: String,
    /// When it was deleted, in nanoseconds since the Unix epoch.
    #[prost(int64, tag = "4")]
    pub deleted: i64,
}
