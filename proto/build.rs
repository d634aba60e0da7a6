//! Generates the Rust code of the wire contract. Needs nothing but cargo: protox compiles the .proto files.
//!
//! Two descriptor sets come out of the same files. The true one is kept as it is, for the reflection
//! service and for the test against the wire table. The lean one drives code generation: every
//! `repeated HistoryEvent` becomes `repeated bytes` (the same bytes on the wire), so that the server
//! stores and forwards histories without decoding them, and texts become [`Text`], which shares the
//! buffer it was read from. The peer protocol is ours alone and generated as it stands.

use std::path::PathBuf;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for folder in ["durabletask", "durahub", "otlp", "peer"] {
        println!("cargo:rerun-if-changed={folder}");
    }

    let sdk = protox::compile(
        ["orchestrator_service.proto", "backend_service.proto", "sandbox_service.proto"],
        ["durabletask"],
    )?;
    std::fs::write(out.join("durabletask.bin"), sdk.encode_to_vec())?;
    let sdk_out = out.join("sdk");
    std::fs::create_dir_all(&sdk_out)?;
    tonic_prost_build::configure()
        .out_dir(&sdk_out)
        .bytes(".")
        .btree_map(".")
        .compile_well_known_types(true)
        .extern_path(".google.protobuf.StringValue", "crate::Text")
        .extern_path(".google.protobuf.BoolValue", "bool")
        .extern_path(".google.protobuf.Int32Value", "i32")
        .extern_path(".google.protobuf.Empty", "()")
        .extern_path(".google.protobuf.Timestamp", "::prost_types::Timestamp")
        .extern_path(".google.protobuf.Duration", "::prost_types::Duration")
        .extern_path(".google.protobuf.Value", "::prost_types::Value")
        .extern_path(".google.protobuf", "::prost_types")
        .include_file("mod.rs")
        .compile_fds(lean(sdk))?;

    let peer = protox::compile(["peer.proto"], ["peer"])?;
    std::fs::write(out.join("peer.bin"), peer.encode_to_vec())?;
    let peer_out = out.join("peer");
    std::fs::create_dir_all(&peer_out)?;
    tonic_prost_build::configure()
        .out_dir(&peer_out)
        .bytes(".")
        .btree_map(".")
        .include_file("mod.rs")
        .compile_fds(peer)?;

    let own = protox::compile(["hubs.proto", "entities.proto", "scaler.proto"], ["durahub"])?;
    std::fs::write(out.join("durahub.bin"), own.encode_to_vec())?;
    let own_out = out.join("durahub");
    std::fs::create_dir_all(&own_out)?;
    tonic_prost_build::configure()
        .out_dir(&own_out)
        .btree_map(".")
        .include_file("mod.rs")
        .compile_fds(own)?;

    let otlp = protox::compile(["trace.proto"], ["otlp"])?;
    let otlp_out = out.join("otlp");
    std::fs::create_dir_all(&otlp_out)?;
    tonic_prost_build::configure()
        .out_dir(&otlp_out)
        .bytes(".")
        .build_server(false)
        .include_file("mod.rs")
        .compile_fds(otlp)?;
    Ok(())
}

/// Turns repeated history events into repeated bytes.
fn lean(mut set: FileDescriptorSet) -> FileDescriptorSet {
    // Places in the source no longer match once a field is added; the .proto files hold the comments.
    set.file.iter_mut().for_each(|file| file.source_code_info = None);
    for message in set.file.iter_mut().flat_map(|file| &mut file.message_type) {
        message.field.iter_mut().filter(|field| is_history(field)).for_each(|field| {
            field.set_type(Type::Bytes);
            field.type_name = None;
        });
        accept_legacy_policy(message);
    }
    set
}

fn is_history(field: &FieldDescriptorProto) -> bool {
    field.type_name() == ".HistoryEvent" && field.label() == Label::Repeated
}

/// Field 2 of the reuse policy is reserved today, but Go's client still fills it (R2.21).
fn accept_legacy_policy(message: &mut DescriptorProto) {
    if message.name() != "OrchestrationIdReusePolicy" {
        return;
    }
    message.reserved_range.clear();
    message.field.push(FieldDescriptorProto {
        name: Some("legacyAction".into()),
        number: Some(2),
        label: Some(Label::Optional.into()),
        r#type: Some(Type::Int32.into()),
        ..Default::default()
    });
}
