//! The wire contract: the Durable Task services as the public SDKs speak them, and our own peer protocol.
//!
//! What a server must do behind these messages stands in `CONTRACT.md`, rule by rule. The code is
//! generated from the `.proto` files beside it (see `build.rs`); nothing here decides anything.
//!
//! Two choices shape every user of this package:
//! - a payload is a [`Text`]: bytes checked to be UTF-8 and shared, never copied, never parsed;
//! - a list of history events is a list of encoded events, since the server stores and forwards them
//!   as they are. Decode one with `wire::HistoryEvent::decode` where its content matters.

mod text;

/// The Durable Task services: messages, client and server of `TaskHubSidecarService`.
pub mod wire {
    #![allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/sdk/mod.rs"));
}

mod peer_wire {
    #![allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/peer/mod.rs"));
}

/// What nodes say to each other, and an operator to a node: `peer/peer.proto`.
pub use peer_wire::durahub::peer::v1 as peer;

mod own_wire {
    #![allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/durahub/mod.rs"));
}

mod otlp_wire {
    #![allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
    include!(concat!(env!("OUT_DIR"), "/otlp/mod.rs"));
}

/// What a collector of traces takes: `otlp/trace.proto`.
pub use otlp_wire::opentelemetry::proto::collector::trace::v1 as otlp;
/// What Durahub answers beside the services of the SDKs: `durahub/*.proto`.
pub use own_wire::durahub::v1 as own;
/// What KEDA asks an external scaler: `durahub/scaler.proto`.
pub use own_wire::externalscaler as scaler;
pub use text::Text;
pub use wire::durabletask::protos::backend::v1 as backend;
pub use wire::microsoft::durabletask::sandboxes as sandbox;

/// The descriptors of the SDK services, encoded, as the `.proto` files state them.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/durabletask.bin"));

/// The descriptors of the peer protocol, encoded.
pub const PEER_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/peer.bin"));

/// The descriptors of Durahub's own services, encoded.
pub const OWN_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/durahub.bin"));
