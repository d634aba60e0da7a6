//! Who belongs to the cluster: how it is first formed.
//!
//! A node that is alone is a cluster of one. A cluster that starts with several members gets the same list
//! of members on each of them; any of them may write it first. Ids are never used twice: a node that has
//! lost its folder comes back under a new id.
//!
//! Joining, leaving and moving replicas at run time will live here; they are changes of the metadata group
//! and of every partition's membership.

use std::collections::BTreeMap;

use crate::batch::mix;
use crate::error::StartError;

/// Checks the first members of a cluster; an empty list is a cluster of one.
pub(crate) fn check_members(node: u64, members: &BTreeMap<u64, String>) -> Result<(), StartError> {
    if members.is_empty() || members.contains_key(&node) {
        return Ok(());
    }
    Err(StartError::Setting {
        name: "initial-cluster",
        value: format!("{:?}", members.keys().collect::<Vec<_>>()),
        rule: "a list that contains this node's own id",
    })
}

/// The id of a cluster that starts with these members: all of them must come to the same one by themselves.
pub(crate) fn cluster_of_members(members: &BTreeMap<u64, String>) -> String {
    let text =
        members.iter().map(|(id, address)| format!("{id}={address}")).collect::<Vec<_>>().join(",");
    let mut halves = [0x6475_7261_6875_6231_u64, 0x6475_7261_6875_6232];
    for byte in text.bytes() {
        for half in &mut halves {
            *half = mix(*half ^ u64::from(byte));
        }
    }
    format!("{:016x}{:016x}", halves[0], halves[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_agree_on_the_cluster() {
        let members = |last: &str| BTreeMap::from([(1, "a:1".to_owned()), (2, last.to_owned())]);
        assert_eq!(cluster_of_members(&members("b:1")), cluster_of_members(&members("b:1")));
        assert_ne!(cluster_of_members(&members("b:1")), cluster_of_members(&members("b:2")));
        assert_eq!(cluster_of_members(&members("b:1")).len(), 32);
    }

    #[test]
    fn member_list_without_this_node_is_refused() {
        let members = BTreeMap::from([(1, "a:1".to_owned())]);
        assert!(check_members(1, &members).is_ok());
        assert!(check_members(2, &members).unwrap_err().to_string().contains("initial-cluster"));
        assert!(check_members(2, &BTreeMap::new()).is_ok());
    }
}
