//! Spans of work items, where a collector is configured: begun when an item is handed out, kept in its lease, ended
//! with it. Nothing is looked up for them otherwise.

use durahub_proto::{Text, wire};
use wire::work_item::Request;

use super::Dispatcher;
use super::hub::{Assignment, Key, LeaseId};
use crate::engine::state::entity_name;
use crate::engine::{Address, read};
use crate::machine::RowsView;
use crate::spans::{Item, Open, Outcome};

/// A span that is to be ended, and when the answer came that ends it.
pub(super) struct Answered {
    open: Option<Box<Open>>,
    at: i64,
}

impl Dispatcher {
    /// Begins the span of an item that is about to be sent.
    pub(super) fn begin_span(&self, hub: u32, to: &Assignment, item: &wire::WorkItem, now: i64) {
        if !self.0.settings.spans.is_on() {
            return;
        }
        let Some(open) = self.open_span(hub, to, item.request.as_ref(), now) else { return };
        self.with_hub(hub, |hub| hub.keep_span(&to.key, to.lease, open));
    }

    fn open_span(
        &self,
        hub: u32,
        to: &Assignment,
        request: Option<&Request>,
        now: i64,
    ) -> Option<Box<Open>> {
        let spans = &self.0.settings.spans;
        let mut item = Item {
            kind: "orchestration",
            hub,
            name: "",
            version: None,
            instance: to.key.instance(),
            execution: None,
            task: None,
            context: None,
        };
        match request? {
            Request::ActivityRequest(request) => {
                item.kind = "activity";
                item.name = &request.name;
                item.version = request.version.as_ref().map(Text::as_str);
                let of = request.orchestration_instance.as_ref()?;
                item.execution = of.execution_id.as_ref().map(Text::as_str);
                item.task = Some(request.task_id);
                item.context = request.parent_trace_context.as_ref();
                spans.open(&item, to.since, now)
            }
            Request::OrchestratorRequest(request) => {
                // The message carries both, but inside of encoded events, or not at all.
                let at = Address::new(hub, &**to.key.instance());
                let partition = self.partition_of(hub, &at.instance);
                let head = partition.peek(|rows| read::head(&RowsView(rows), &at))?;
                item.name = &head.name;
                item.version = head.version.as_ref().map(Text::as_str);
                item.execution = request.execution_id.as_ref().map(Text::as_str);
                item.context = head.parent_trace.as_ref();
                spans.open(&item, to.since, now)
            }
            Request::EntityRequestV2(_) => {
                item.kind = "entity";
                item.name = entity_name(to.key.instance()).unwrap_or_default();
                spans.open(&item, to.since, now)
            }
            _ => None,
        }
    }

    /// The span of an item whose answer has just come.
    pub(super) fn answered_span(&self, hub: u32, key: &Key, lease: LeaseId) -> Answered {
        if !self.0.settings.spans.is_on() {
            return Answered { open: None, at: 0 };
        }
        let open = self.with_hub(hub, |hub| hub.take_span(key, lease));
        Answered { open, at: self.0.clock.now() }
    }

    /// The answer may come again.
    pub(super) fn keep_answered(&self, hub: u32, key: &Key, lease: LeaseId, answered: Answered) {
        if let Some(open) = answered.open {
            self.with_hub(hub, |hub| hub.keep_span(key, lease, open));
        }
    }

    /// The answer is committed, or has changed nothing.
    pub(super) fn end_span(&self, answered: Answered, is_committed: bool) {
        let Answered { open: Some(open), at } = answered else { return };
        let outcome = if is_committed { Outcome::Committed } else { Outcome::Ignored };
        self.0.settings.spans.close(*open, Some(at), outcome);
    }

    /// A worker gave an item back.
    pub(super) fn give_back_span(&self, hub: u32, key: &Key, lease: LeaseId) {
        if let Some(open) = self.answered_span(hub, key, lease).open {
            self.0.settings.spans.close(*open, None, Outcome::GivenBack);
        }
    }

    /// Leases ended before their answers came.
    pub(super) fn expire_spans(&self, late: Vec<Open>) {
        for open in late {
            self.0.settings.spans.close(open, None, Outcome::LeaseEnded);
        }
    }
}
