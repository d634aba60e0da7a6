//! Pins the peer protocol: nodes of two versions talk to each other while a cluster is being upgraded.
//!
//! `peer.txt` is our own table, one line per method, field and enum value. A changed number or type fails; a
//! new line is added to the table by hand, together with the change.

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

fn lines() -> Vec<String> {
    let set = FileDescriptorSet::decode(durahub_proto::PEER_DESCRIPTORS).expect("they decode");
    assert_eq!(set.file.len(), 1, "the peer protocol imports nothing");
    let file = &set.file[0];
    assert_eq!((file.package(), file.syntax()), ("durahub.peer.v1", "proto3"));
    let mut lines = Vec::new();
    for service in &file.service {
        for method in &service.method {
            let kind = |streams: bool, name: &str| {
                format!("{}{}", if streams { "stream " } else { "" }, short(name))
            };
            lines.push(format!(
                "{}.{}({}) -> {}",
                service.name(),
                method.name(),
                kind(method.client_streaming(), method.input_type()),
                kind(method.server_streaming(), method.output_type()),
            ));
        }
    }
    file.message_type.iter().for_each(|message| fields(message, &mut lines));
    for values in &file.enum_type {
        for value in &values.value {
            lines.push(format!("{}.{} = {}", values.name(), value.name(), value.number()));
        }
    }
    lines
}

fn fields(message: &DescriptorProto, lines: &mut Vec<String>) {
    assert!(message.nested_type.is_empty(), "{} nests a message", message.name());
    if message.field.is_empty() {
        lines.push(format!("{} (empty)", message.name()));
    }
    for field in &message.field {
        let kind = match field.r#type() {
            Type::Message | Type::Enum => short(field.type_name()).to_owned(),
            scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        };
        let many = if field.label() == Label::Repeated { "repeated " } else { "" };
        let part = match field.oneof_index {
            Some(_) if field.proto3_optional() => " optional".to_owned(),
            Some(index) => format!(" oneof {}", message.oneof_decl[index as usize].name()),
            None => String::new(),
        };
        let (name, number) = (field.name(), field.number());
        lines.push(format!("{}.{name} = {number}: {many}{kind}{part}", message.name()));
    }
}

fn short(name: &str) -> &str {
    name.trim_start_matches(".durahub.peer.v1.")
}

#[test]
fn the_peer_protocol_equals_its_table() {
    let found = lines().join("\n") + "\n";
    let table = include_str!("peer.txt");
    for (found, wanted) in found.lines().zip(table.lines()) {
        assert_eq!(found, wanted);
    }
    assert_eq!(found, table);
}
