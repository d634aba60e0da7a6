//! Holds the compiled descriptors against the wire table: every service, method, message, field and enum.
//!
//! `wire.json` was read from the public protocol; a name, number or type that drifts breaks programs
//! which already exist.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value, json};

/// The wire table in the form of `wire.json`, built from what protox compiled.
fn compiled() -> Value {
    let set = FileDescriptorSet::decode(durahub_proto::DESCRIPTORS).expect("descriptors decode");
    let files: Vec<Value> =
        ["orchestrator_service.proto", "backend_service.proto", "sandbox_service.proto"]
            .into_iter()
            .map(|name| file(set.file.iter().find(|f| f.name() == name).expect("file is compiled")))
            .collect();
    json!({ "files": files })
}

fn file(file: &FileDescriptorProto) -> Value {
    let scope =
        if file.package().is_empty() { String::new() } else { format!("{}.", file.package()) };
    let services: Map<String, Value> = file
        .service
        .iter()
        .map(|service| {
            let methods = service.method.iter().map(|m| {
                json!({
                    "method": m.name(),
                    "request": absolute(m.input_type()),
                    "response": absolute(m.output_type()),
                    "client_streaming": m.client_streaming(),
                    "server_streaming": m.server_streaming(),
                })
            });
            (service.name().to_owned(), methods.collect())
        })
        .collect();
    let messages: Map<String, Value> =
        file.message_type.iter().map(|m| (format!("{scope}{}", m.name()), message(m))).collect();
    let enums: Map<String, Value> = file
        .enum_type
        .iter()
        .map(|e| {
            let values: Map<String, Value> =
                e.value.iter().map(|v| (v.name().to_owned(), json!(v.number()))).collect();
            (format!("{scope}{}", e.name()), Value::Object(values))
        })
        .collect();
    json!({
        "file": file.name(),
        "package": file.package(),
        "syntax": file.syntax(),
        "imports": file.dependency,
        "services": services,
        "messages": messages,
        "enums": enums,
    })
}

fn message(message: &DescriptorProto) -> Value {
    let maps: BTreeMap<&str, &DescriptorProto> = message
        .nested_type
        .iter()
        .filter(|nested| nested.options.as_ref().is_some_and(|o| o.map_entry()))
        .map(|nested| (nested.name(), nested))
        .collect();
    let fields: Vec<Value> = message.field.iter().map(|f| field(message, f, &maps)).collect();
    let mut out = json!({ "fields": fields });
    if !message.reserved_range.is_empty() {
        out["reserved"] =
            message.reserved_range.iter().map(|r| json!([r.start(), r.end() - 1])).collect();
    }
    out
}

fn field(
    message: &DescriptorProto,
    field: &FieldDescriptorProto,
    maps: &BTreeMap<&str, &DescriptorProto>,
) -> Value {
    let map = maps.get(field.type_name().rsplit('.').next().expect("rsplit yields something"));
    let kind = match map {
        Some(entry) => format!("map<{}, {}>", type_of(&entry.field[0]), type_of(&entry.field[1])),
        None => type_of(field),
    };
    let mut out = json!({ "number": field.number(), "name": field.name(), "type": kind });
    if map.is_none() && field.label() == Label::Repeated {
        out["repeated"] = json!(true);
    }
    if let Some(index) = field.oneof_index {
        out["oneof"] = json!(message.oneof_decl[index as usize].name());
    }
    if field.options.as_ref().is_some_and(|o| o.deprecated()) {
        out["deprecated"] = json!(true);
    }
    out
}

fn type_of(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => absolute(field.type_name()),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn absolute(name: &str) -> String {
    name.trim_start_matches('.').to_owned()
}

/// R1.1, R1.2: services, methods and messages have the public names and numbers.
#[test]
fn descriptors_equal_the_wire_table() {
    let table: Value = serde_json::from_str(include_str!("wire.json")).expect("the table is JSON");
    let compiled = compiled();
    let files = |v: &Value| v["files"].as_array().expect("files").clone();
    for (theirs, ours) in files(&table).iter().zip(files(&compiled)) {
        for part in ["file", "package", "syntax", "services", "enums"] {
            assert_eq!(ours[part], theirs[part], "{part} of {}", theirs["file"]);
        }
        let (ours, theirs) = (
            ours["messages"].as_object().expect("messages"),
            theirs["messages"].as_object().expect("messages"),
        );
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (name, message) in theirs {
            assert_eq!(&ours[name], message, "message {name}");
        }
    }
    assert_eq!(files(&compiled).len(), files(&table).len());
}
