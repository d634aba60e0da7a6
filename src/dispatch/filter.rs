//! What a worker stream accepts (section 3.2).

use std::collections::{HashMap, HashSet};

use durahub_proto::wire;

use super::hub::Kind;
use crate::engine::Class;

/// The work item filters of a stream, fixed for its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// `None`: everything, any version (R3.7).
    kinds: Option<[Names; Kind::COUNT]>,
}

/// Accepted names, in lower case (R3.12), with the accepted versions; none means any (R3.10).
type Names = HashMap<String, HashSet<String>>;

impl Filter {
    pub(crate) fn new(filters: Option<wire::WorkItemFilters>) -> Filter {
        let Some(filters) = filters else { return Filter::default() };
        let names = |pairs: Vec<(String, Vec<String>)>| {
            let mut names = Names::new();
            for (name, versions) in pairs {
                names.entry(name.to_lowercase()).or_default().extend(versions);
            }
            names
        };
        let orchestrations =
            filters.orchestrations.into_iter().map(|f| (f.name, f.versions)).collect();
        let activities = filters.activities.into_iter().map(|f| (f.name, f.versions)).collect();
        let entities = filters.entities.into_iter().map(|f| (f.name, Vec::new())).collect();
        Filter { kinds: Some([names(orchestrations), names(activities), names(entities)]) }
    }

    /// Whether an item may go to the stream. A present filter with an empty list for a kind accepts none
    /// of that kind (R3.8).
    pub(crate) fn accepts(&self, kind: Kind, class: &Class) -> bool {
        let Some(kinds) = &self.kinds else { return true };
        kinds[kind as usize]
            .get(&class.name)
            .is_some_and(|versions| versions.is_empty() || versions.contains(&class.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, version: &str) -> Class {
        Class { name: name.into(), version: version.into() }
    }

    #[test]
    fn no_filter_accepts_everything() {
        assert!(Filter::new(None).accepts(Kind::Turn, &class("any", "1")));
    }

    #[test]
    fn names_match_without_case_and_versions_exactly() {
        let filter = Filter::new(Some(wire::WorkItemFilters {
            orchestrations: vec![
                wire::OrchestrationFilter { name: "Any".into(), versions: vec![] },
                wire::OrchestrationFilter {
                    name: "Strict".into(),
                    versions: vec!["1".into(), "".into()],
                },
            ],
            ..Default::default()
        }));
        assert!(filter.accepts(Kind::Turn, &class("any", "7")));
        assert!(filter.accepts(Kind::Turn, &class("strict", "1")));
        assert!(filter.accepts(Kind::Turn, &class("strict", "")), "unset counts as empty");
        assert!(!filter.accepts(Kind::Turn, &class("strict", "2")));
        assert!(!filter.accepts(Kind::Turn, &class("other", "")));
        assert!(!filter.accepts(Kind::Activity, &class("any", "")), "an empty list means none");
    }
}
