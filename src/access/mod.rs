//! Who may do what: every call to a port of this node passes through here.
//!
//! - [`roles`]: roles, grants, and the rules that hand them out.

mod roles;

pub use roles::{Grant, Role, Rule};
