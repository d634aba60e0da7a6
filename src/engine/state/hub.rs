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
}
