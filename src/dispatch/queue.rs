//! Ready work of one kind in one hub: pure.
//!
//! Items wait in lines, one per class (what filters compare), each in order of age. Taking the oldest item
//! that a stream accepts costs the number of classes that have ready items, not the number of items: a
//! flood that no connected worker accepts slows nobody down.

use std::collections::{BTreeMap, HashMap};

use crate::engine::Class;

/// Age of an item: smaller is older. A redelivered item keeps its age.
pub(crate) type Age = u64;

/// Ready items, oldest first within and across classes.
pub(crate) struct Queue<K> {
    lines: HashMap<Class, BTreeMap<Age, K>>,
    ready: usize,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Queue { lines: HashMap::new(), ready: 0 }
    }
}

impl<K> Queue<K> {
    /// Adds an item. `class` has its name in lower case.
    pub(crate) fn push(&mut self, class: Class, age: Age, item: K) {
        if self.lines.entry(class).or_default().insert(age, item).is_none() {
            self.ready += 1;
        }
    }

    /// Takes the oldest item whose class is accepted.
    pub(crate) fn pop(&mut self, accepts: impl Fn(&Class) -> bool) -> Option<(Class, Age, K)> {
        let (class, _) = self
            .lines
            .iter()
            .filter(|(class, _)| accepts(class))
            .filter_map(|(class, line)| Some((class, *line.first_key_value()?.0)))
            .min_by_key(|(_, age)| *age)?;
        let class = class.clone();
        let line = self.lines.get_mut(&class)?;
        let (age, item) = line.pop_first()?;
        if line.is_empty() {
            self.lines.remove(&class);
        }
        self.ready -= 1;
        Some((class, age, item))
    }

    /// Removes an item wherever it stands in its line.
    pub(crate) fn remove(&mut self, class: &Class, age: Age) {
        let Some(line) = self.lines.get_mut(class) else { return };
        if line.remove(&age).is_some() {
            self.ready -= 1;
        }
        if line.is_empty() {
            self.lines.remove(class);
        }
    }

    /// The oldest item of all.
    pub(crate) fn oldest(&self) -> Option<&K> {
        let lines = self.lines.values().filter_map(BTreeMap::first_key_value);
        lines.min_by_key(|(age, _)| **age).map(|(_, item)| item)
    }

    /// How many items are ready.
    pub(crate) fn len(&self) -> usize {
        self.ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str) -> Class {
        Class { name: name.into(), version: String::new() }
    }

    #[test]
    fn the_oldest_accepted_item_comes_first() {
        let mut queue = Queue::default();
        for (age, name) in [(3, "a"), (1, "b"), (2, "a"), (0, "c")] {
            queue.push(class(name), age, age);
        }
        let mut pop = |names: &[&str]| {
            queue.pop(|class| names.contains(&class.name.as_str())).map(|(_, _, item)| item)
        };
        assert_eq!(pop(&["a"]), Some(2));
        assert_eq!(pop(&["a", "b"]), Some(1));
        assert_eq!(pop(&["b"]), None);
        assert_eq!(pop(&["a", "b", "c"]), Some(0));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn a_removed_item_is_gone_and_leaves_no_empty_line() {
        let mut queue = Queue::default();
        queue.push(class("a"), 1, "one");
        queue.push(class("a"), 2, "two");
        queue.remove(&class("a"), 1);
        queue.remove(&class("a"), 7);
        assert_eq!(queue.pop(|_| true).map(|(_, _, item)| item), Some("two"));
        assert_eq!((queue.len(), queue.lines.len()), (0, 0));
    }
}
