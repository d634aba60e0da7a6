//! Task hubs, as the metadata group knows them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::engine::state::{HubRecord, decode, keys};
use crate::engine::view::{View, scan_prefix};

/// The hub of that name.
pub fn hub(view: &dyn View, name: &str) -> Option<HubRecord> {
    view.get(&keys::hub(name)).map(decode)
}

/// All hubs by name.
pub fn hubs(view: &dyn View) -> BTreeMap<String, HubRecord> {
    let mut hubs = BTreeMap::new();
    scan_prefix(view, &keys::hubs(), &mut |key, value| {
        hubs.extend(
            keys::parse_hub(key).map(|name| (name, decode(bytes::Bytes::copy_from_slice(value)))),
        );
        ControlFlow::Continue(())
    });
    hubs
}

/// The highest hub number ever given out.
pub(crate) fn last_hub(view: &dyn View) -> u32 {
    let row = view.get(&keys::last_hub());
    row.and_then(|row| row.as_ref().try_into().ok()).map_or(0, u32::from_be_bytes)
}
