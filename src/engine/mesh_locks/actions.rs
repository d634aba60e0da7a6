//! What a teller asks for in a turn.

use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::send_entity_message_action::EntityMessageType as Message;
use durahub_proto::wire::{self, OrchestrationStatus};

use super::till::Till;
use super::{Bank, complete};

impl Bank {
    pub(super) fn act(&mut self, sender: &str, till: &Till) -> Vec<wire::OrchestratorAction> {
        let ends = || -> [OrchestrationStatus; 3] {
            use OrchestrationStatus::{Completed, ContinuedAsNew, Failed};
            [Completed, Failed, ContinuedAsNew]
        };
        let chance = if self.draining { 0 } else { self.random.below(100) };
        let end = match self.draining {
            true => OrchestrationStatus::Completed,
            false => *self.random.pick(&ends()),
        };
        let mut actions = Vec::new();
        if !till.is_inside() {
            if self.draining || chance < 15 {
                actions.push(self.action(complete(end)));
            } else if chance < 30 {
                let account = self.some_account();
                actions.push(self.signal_action(sender, &account));
            } else {
                if chance < 40 {
                    let account = self.some_account();
                    actions.push(self.signal_action(sender, &account));
                }
                actions.push(self.lock_action());
                if chance > 95 {
                    self.saw("ended waiting");
                    actions.push(self.action(complete(end)));
                }
            }
            return actions;
        }
        if !till.granted {
            if chance > 92 {
                self.saw("asked again");
                actions.extend(self.unlock_actions(till));
                actions.push(self.lock_action());
            } else if chance > 85 {
                self.saw("left waiting");
                actions.extend(self.unlock_actions(till));
                actions.push(self.action(complete(end)));
            } else if chance > 75 {
                self.saw("ended waiting");
                actions.push(self.action(complete(end)));
            }
            return actions;
        }
        if till.called == 0 && till.set.len() > 1 {
            self.saw("transfer");
            let amount = 1 + self.random.below(50) as i64;
            for (account, amount) in [(&till.set[0], -amount), (&till.set[1], amount)] {
                actions.push(self.call_action(sender, account, amount));
            }
        }
        if till.called > till.answered || !actions.is_empty() {
            if chance > 90 {
                self.saw("ended holding");
                actions.push(self.action(complete(end)));
            }
            return actions;
        }
        if chance < 70 {
            actions.extend(self.unlock_actions(till));
            if chance < 30 {
                return actions;
            }
        } else if end == OrchestrationStatus::ContinuedAsNew {
            self.saw("begun anew holding");
        } else {
            self.saw("ended holding");
        }
        actions.push(self.action(complete(end)));
        actions
    }

    pub(super) fn lock_action(&mut self) -> wire::OrchestratorAction {
        let count = 1 + self.random.below(3);
        let lock_set = (0..count).map(|_| self.some_account()).collect();
        let request = wire::EntityLockRequestedEvent {
            // Some workers use an id again and again.
            critical_section_id: format!("section{}", self.random.below(2)),
            lock_set,
            ..Default::default()
        };
        self.entity_action(Message::EntityLockRequested(request))
    }

    pub(super) fn unlock_actions(&mut self, till: &Till) -> Vec<wire::OrchestratorAction> {
        let unlock = |account: &String| wire::EntityUnlockSentEvent {
            critical_section_id: till.section.clone(),
            parent_instance_id: None,
            target_instance_id: Some(account.as_str().into()),
        };
        let unlocks: Vec<_> = till.set.iter().map(unlock).collect();
        unlocks.into_iter().map(|it| self.entity_action(Message::EntityUnlockSent(it))).collect()
    }

    pub(super) fn call_action(
        &mut self,
        sender: &str,
        account: &str,
        amount: i64,
    ) -> wire::OrchestratorAction {
        let input = Some(self.numbered(sender, account, amount).into());
        let call = wire::EntityOperationCalledEvent {
            request_id: format!("call{}", self.next),
            operation: "add".into(),
            input,
            target_instance_id: Some(account.into()),
            ..Default::default()
        };
        self.entity_action(Message::EntityOperationCalled(call))
    }

    pub(super) fn signal_action(
        &mut self,
        sender: &str,
        account: &str,
    ) -> wire::OrchestratorAction {
        let signal = wire::EntityOperationSignaledEvent {
            request_id: format!("signal{}", self.next),
            operation: "add".into(),
            input: Some(self.numbered(sender, account, 0).into()),
            target_instance_id: Some(account.into()),
            ..Default::default()
        };
        self.entity_action(Message::EntityOperationSignaled(signal))
    }

    pub(super) fn entity_action(&mut self, message: Message) -> wire::OrchestratorAction {
        let entity_message_type = Some(message);
        self.action(Action::SendEntityMessage(wire::SendEntityMessageAction {
            entity_message_type,
        }))
    }

    pub(super) fn action(&mut self, of: Action) -> wire::OrchestratorAction {
        let id = self.next;
        self.next += 1;
        wire::OrchestratorAction { id, orchestrator_action_type: Some(of) }
    }
}
