//! Golden bytes: what commands, stored records and answers look like, byte by byte, for ever.
//!
//! Each entry of the tables is a value with every field set, and the bytes it was ever written as, in
//! hexadecimal, grouped by field: the last form is today's, the ones before it are what older versions
//! have left in logs and stores. The tests write every value and read every form, and find
//! - a changed tag, type or order: the value no longer gives its bytes, or the bytes not the value;
//! - a dropped field: a form comes back shorter than it was;
//! - a field, command or record that has no entry: the sources are compared with the tables.
//!
//! **After adding a field** set it in the entry and append the form that the failing test prints; leave
//! the forms before it alone. **After adding a command or record** add an entry with `&[]`, and fill in
//! the form that the failing test prints. A form goes when the last folder that may hold it has: never.

#![allow(
    clippy::needless_update,
    reason = "a new field should fail a test that says what to do, not the build of a merge"
)]

mod bytes;
mod commands;
mod entities;
mod queries;
mod records;
mod source;

use std::collections::BTreeSet;

use prost::Message;

/// A value, what it was ever written as, and how it is read.
struct Entry {
    /// The message, as the sources name it.
    name: &'static str,
    /// What stands before its fields: a command has an envelope.
    head: Box<dyn Fn(&[u8]) -> Vec<u8>>,
    /// Its fields, as they are written today.
    body: Vec<u8>,
    /// Reads a form and writes it again; `None` if it cannot be read.
    rewrite: Box<dyn Fn(&[u8]) -> Option<Vec<u8>>>,
    /// Whether a form is read as the value.
    is_value: Box<dyn Fn(&[u8]) -> bool>,
    /// All forms, the oldest first.
    forms: &'static [&'static str],
}

impl Entry {
    /// What these fields are written as.
    fn whole(&self, body: &[u8]) -> Vec<u8> {
        [(self.head)(body), body.to_vec()].concat()
    }

    /// Today's form, as the tables show it.
    fn today(&self) -> String {
        let fields = bytes::fields(&self.body).into_iter().map(|field| bytes::hex(field.bytes));
        let parts = std::iter::once(bytes::hex(&(self.head)(&self.body))).chain(fields);
        parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// An entry for a message that is stored as it is.
fn record<R>(value: R, forms: &'static [&'static str]) -> Entry
where
    R: Message + Default + PartialEq + 'static,
{
    Entry {
        name: name_of::<R>(),
        head: Box::new(|_| Vec::new()),
        body: value.encode_to_vec(),
        rewrite: Box::new(|form| Some(R::decode(form).ok()?.encode_to_vec())),
        is_value: Box::new(move |form| R::decode(form).is_ok_and(|read| read == value)),
        forms,
    }
}

/// The last part of a type's path.
fn name_of<T>() -> &'static str {
    std::any::type_name::<T>().rsplit("::").next().unwrap_or_default()
}

fn tables() -> Vec<Entry> {
    let tables = [
        commands::table(),
        records::table(),
        entities::records(),
        records::answers(),
        queries::table(),
    ];
    tables.into_iter().flatten().collect()
}

fn assert_none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn every_value_is_written_as_pinned_and_every_form_is_read() {
    let mut problems = Vec::new();
    for entry in tables() {
        let forms: Vec<_> = entry.forms.iter().map(|form| bytes::parse(form)).collect();
        if forms.last() != Some(&entry.whole(&entry.body)) {
            let (name, today) = (entry.name, entry.today());
            problems
                .push(format!("{name} is written in a form that is not its last:\n\"{today}\","));
        } else if !forms.last().is_some_and(|form| (entry.is_value)(form)) {
            problems.push(format!("{}: the last form is read as another value", entry.name));
        }
        for form in &forms {
            if (entry.rewrite)(form).as_ref() != Some(form) {
                problems.push(format!(
                    "{}: a form is not read whole: {}",
                    entry.name,
                    bytes::hex(form)
                ));
            }
        }
    }
    assert_none(problems);
}

#[test]
fn every_field_of_every_message_is_set() {
    let declared = source::messages();
    assert!(declared.len() > 15, "the sources are found: {declared:?}");
    let entries = tables();
    let mut problems = Vec::new();
    for (name, declared) in &declared {
        // A message with a choice has an entry for each.
        let entries = entries.iter().filter(|entry| entry.name == name);
        let fields = entries.flat_map(|entry| bytes::fields(&entry.body));
        let set: BTreeSet<u32> = fields.map(|field| field.tag).collect();
        // Pinned with what they carry; and the parts of messages that some readers want.
        let others = ["Envelope", "AnswerRecord", "Head"];
        if set != *declared && !others.contains(&name.as_str()) {
            problems.push(format!("{name} has fields {declared:?}, its entries set {set:?}"));
        }
    }
    assert_none(problems);
}

#[test]
fn every_command_has_an_entry() {
    let entries = commands::table();
    let pinned: BTreeSet<u32> = entries.iter().map(commands::tag).collect();
    assert_eq!(pinned, source::command_tags(), "tags of the table, and of `enum Command`");
    assert_eq!(pinned.len(), entries.len(), "a tag stands for one command");
}

/// What an older version wrote lacks the fields that came later; what a newer one writes has fields that
/// are unknown here. Both are read.
#[test]
fn fields_may_be_added() {
    for entry in tables() {
        let fields = bytes::fields(&entry.body);
        for count in 0..fields.len() {
            let older: Vec<u8> = fields[..count].iter().flat_map(|f| f.bytes.to_vec()).collect();
            let read = (entry.rewrite)(&entry.whole(&older));
            assert!(read.is_some(), "{} with its first {count} fields", entry.name);
        }
        let newer = [&entry.body[..], &[0xfa, 0x3f, 3, b'n', b'e', b'w']].concat();
        assert!((entry.is_value)(&entry.whole(&newer)), "{} with one field more", entry.name);
    }
}
