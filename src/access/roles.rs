//! Roles, and who has which one where.
//!
//! The roles are those of the managed service, and an `admin` above them:
//!
//! | Role | May |
//! | --- | --- |
//! | `reader` | read instances, entities and histories |
//! | `worker` | take work items and complete them |
//! | `contributor` | all of that; start, steer and purge instances, signal entities |
//! | `admin` | all of that; create, delete and set up task hubs; with hub `*`, operate the cluster |

use std::collections::BTreeMap;

/// What somebody may be allowed to do in a task hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Reader,
    /// Takes and completes work items.
    Worker,
    /// Does all that SDK programs do.
    Contributor,
    /// Does everything.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Reader, Role::Worker, Role::Contributor, Role::Admin];

    /// Its name, as it stands in a grant.
    pub fn name(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Worker => "worker",
            Role::Contributor => "contributor",
            Role::Admin => "admin",
        }
    }
}

/// A role in the task hubs that fit: one by its name, all that begin with something (`orders-*`), or all
/// (`*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What may be done.
    pub role: Role,
    hubs: String,
}

impl Grant {
    /// Reads `ROLE@HUB`; `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Grant> {
        let (role, hubs) = text.trim().split_once('@')?;
        let role = Role::ALL.into_iter().find(|known| known.name() == role)?;
        let name = hubs.strip_suffix('*').unwrap_or(hubs);
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let sound = !hubs.is_empty() && hubs.len() <= 64 && name.chars().all(letter);
        sound.then(|| Grant { role, hubs: hubs.to_owned() })
    }

    /// Everything, everywhere.
    pub(super) fn everything() -> Grant {
        Grant { role: Role::Admin, hubs: "*".to_owned() }
    }

    /// Whether it is about the hub.
    #[must_use]
    pub fn covers(&self, hub: &str) -> bool {
        match self.hubs.strip_suffix('*') {
            Some(beginning) => hub.starts_with(beginning),
            None => self.hubs == hub,
        }
    }

    /// Whether it is about all hubs, and so about the cluster as a whole.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.hubs == "*"
    }
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// A token by its name, a JSON Web Token by its subject, a certificate by a name in it.
    Name(String),
    /// A JSON Web Token with this value in this claim.
    Claim { claim: String, value: String },
}

/// One grant and whom it is for: `NAME=ROLE@HUB` or `claim.CLAIM:VALUE=ROLE@HUB`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    who: Who,
    grant: Grant,
}

impl Rule {
    /// Reads a rule; `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Rule> {
        let (who, grant) = text.trim().rsplit_once('=')?;
        let (who, grant) = (who.trim(), Grant::parse(grant)?);
        let who = match who.strip_prefix("claim.") {
            Some(rest) => {
                let (claim, value) = rest.split_once(':')?;
                if claim.is_empty() || value.is_empty() {
                    return None;
                }
                Who::Claim { claim: claim.to_owned(), value: value.to_owned() }
            }
            None if who.is_empty() => return None,
            None => Who::Name(who.to_owned()),
        };
        Some(Rule { who, grant })
    }
}

/// All rules, ready to be asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    by_name: BTreeMap<String, Vec<Grant>>,
    by_claim: Vec<(String, String, Grant)>,
}

impl Rules {
    pub(super) fn new(rules: impl IntoIterator<Item = Rule>) -> Rules {
        let mut all = Rules::default();
        for Rule { who, grant } in rules {
            match who {
                Who::Name(name) => all.by_name.entry(name).or_default().push(grant),
                Who::Claim { claim, value } => all.by_claim.push((claim, value, grant)),
            }
        }
        all
    }

    /// What somebody of that name is granted.
    pub(super) fn of_name(&self, name: &str) -> &[Grant] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// What the claims of a token are granted. A claim is a text, a list of texts, or a number or boolean that
    /// is compared as it is written.
    pub(super) fn of_claims(
        &self,
        claims: &serde_json::Map<String, serde_json::Value>,
    ) -> Vec<Grant> {
        let has = |claim: &str, wanted: &str| {
            let is = |value: &serde_json::Value| match value {
                serde_json::Value::String(text) => text == wanted,
                serde_json::Value::Number(number) => number.to_string() == wanted,
                serde_json::Value::Bool(flag) => flag.to_string() == wanted,
                _ => false,
            };
            match claims.get(claim) {
                Some(serde_json::Value::Array(values)) => values.iter().any(is),
                // Scopes are one text with blanks between them.
                Some(serde_json::Value::String(text)) if claim == "scope" || claim == "scp" => {
                    text.split(' ').any(|scope| scope == wanted)
                }
                Some(value) => is(value),
                None => false,
            }
        };
        let granted = self.by_claim.iter().filter(|(claim, value, _)| has(claim, value));
        granted.map(|(_, _, grant)| grant.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_cover_a_hub_a_beginning_or_all() {
        for (grant, covered, not) in [
            ("reader@orders", &["orders"][..], &["order", "orders-2", ""][..]),
            ("worker@orders-*", &["orders-", "orders-2"], &["orders", "x"]),
            ("admin@*", &["", "a", "default"], &[]),
        ] {
            let grant = Grant::parse(grant).unwrap();
            assert!(covered.iter().all(|hub| grant.covers(hub)), "{grant:?}");
            assert!(not.iter().all(|hub| !grant.covers(hub)), "{grant:?}");
        }
        for bad in ["", "reader", "reader@", "owner@a", "Reader@a", "reader@a b", "reader@*a", "@a"]
        {
            assert_eq!(Grant::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn rules_are_about_names_and_claims() {
        for bad in ["", "=reader@a", "a", "claim.x=reader@a", "claim.:v=reader@a", "a=reader"] {
            assert_eq!(Rule::parse(bad), None, "{bad}");
        }
        let texts = [
            "ci=reader@a",
            "claim.roles:ops=admin@*",
            "claim.scope:run=worker@a",
            "spiffe://x/y=z=worker@b",
        ];
        let rules = Rules::new(texts.iter().map(|text| Rule::parse(text).unwrap()));
        assert_eq!(rules.of_name("ci").len(), 1);
        assert_eq!(rules.of_name("spiffe://x/y=z")[0].role, Role::Worker);
        assert!(rules.of_name("ops").is_empty());
        let claims = |json: serde_json::Value| rules.of_claims(json.as_object().unwrap());
        assert_eq!(claims(serde_json::json!({ "roles": ["dev", "ops"] })), [Grant::everything()]);
        assert_eq!(claims(serde_json::json!({ "roles": "ops" })), [Grant::everything()]);
        assert_eq!(claims(serde_json::json!({ "scope": "read run" }))[0].role, Role::Worker);
        assert!(claims(serde_json::json!({ "roles": "ops dev", "ops": "roles" })).is_empty());
    }
}
