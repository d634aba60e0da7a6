//! Ready work of one kind in one hub: pure.
//!
//! Items wait in lines, one per class (what filters compare), each in order of age. Taking the oldest item
//! that a stream accepts costs the number of classes that have ready items, not the number of items: a
//! flood that no connected worker accepts slows nobody down. A class is kept once, however many items of
//! it wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::engine::Class;

/// Age of an item: smaller is older. Since when it wants work, in nanoseconds since the Unix epoch, and
/// the order of those that agree. A redelivered item keeps its age, and so does one on a new leader.
pub(crate) type Age = (i64, u64);

/// What is asked of a stream: whether it takes items like these.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    /// What filters compare; the name is in lower case.
    pub(crate) class: Class,
    /// The history is too large for a worker that cannot stream it (R3.30).
    pub(crate) large: bool,
}

/// Ready items, oldest first within and across lines.
pub(crate) struct Queue<K> {
    lines: HashMap<Arc<Line>, BTreeMap<Age, K>>,
    ready: usize,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Queue { lines: HashMap::new(), ready: 0 }
    }
}

impl<K> Queue<K> {
    /// Adds an item. Returns its line, shared with all others in it.
    pub(crate) fn push(&mut self, line: Arc<Line>, age: Age, item: K) -> Arc<Line> {
        let line = self.lines.get_key_value(&line).map_or(line, |(shared, _)| shared.clone());
        if self.lines.entry(line.clone()).or_default().insert(age, item).is_none() {
            self.ready += 1;
        }
        line
    }

    /// Takes the oldest item of the lines that are accepted.
    pub(crate) fn pop(&mut self, accepts: impl Fn(&Line) -> bool) -> Option<K> {
        let (line, age) = self
            .lines
            .iter()
            .filter(|(line, _)| accepts(line))
            .filter_map(|(line, items)| Some((line, *items.first_key_value()?.0)))
            .min_by_key(|(_, age)| *age)?;
        self.remove(&line.clone(), age)
    }

    /// Removes an item wherever it stands in its line.
    pub(crate) fn remove(&mut self, line: &Arc<Line>, age: Age) -> Option<K> {
        let items = self.lines.get_mut(line)?;
        let item = items.remove(&age);
        self.ready -= usize::from(item.is_some());
        if items.is_empty() {
            self.lines.remove(line);
        }
        item
    }

    /// Age of the oldest item of all.
    pub(crate) fn oldest(&self) -> Option<Age> {
        self.lines.values().filter_map(BTreeMap::first_key_value).map(|(age, _)| *age).min()
    }

    /// How many items are ready in the lines that are accepted.
    pub(crate) fn accepted(&self, accepts: impl Fn(&Line) -> bool) -> usize {
        let accepted = self.lines.iter().filter(|(line, _)| accepts(line));
        accepted.map(|(_, items)| items.len()).sum()
    }

    /// How many items are ready.
    pub(crate) fn len(&self) -> usize {
        self.ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str) -> Arc<Line> {
        let class = Class { name: name.into(), version: String::new() };
        Arc::new(Line { class, large: false })
    }

    #[test]
    fn the_oldest_accepted_item_comes_first() {
        let mut queue = Queue::default();
        for (age, name) in [(3, "a"), (1, "b"), (2, "a"), (0, "c")] {
            queue.push(line(name), (age, 0), age);
        }
        let mut pop = |names: &[&str]| queue.pop(|line| names.contains(&line.class.name.as_str()));
        assert_eq!(pop(&["a"]), Some(2));
        assert_eq!(pop(&["a", "b"]), Some(1));
        assert_eq!(pop(&["b"]), None);
        assert_eq!(pop(&["a", "b", "c"]), Some(0));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn a_removed_item_is_gone_and_leaves_no_empty_line() {
        let mut queue = Queue::default();
        queue.push(line("a"), (1, 0), "one");
        queue.push(line("a"), (2, 0), "two");
        queue.remove(&line("a"), (1, 0));
        queue.remove(&line("a"), (7, 0));
        assert_eq!(queue.pop(|_| true), Some("two"));
        assert_eq!((queue.len(), queue.lines.len()), (0, 0));
    }

    #[test]
    fn items_of_a_class_share_it() {
        let mut queue = Queue::default();
        let first = queue.push(line("a"), (1, 0), "one");
        let second = queue.push(line("a"), (2, 0), "two");
        assert!(Arc::ptr_eq(&first, &second));
    }
}
