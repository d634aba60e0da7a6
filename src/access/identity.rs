//! Who somebody is, and what that allows.

use super::calls::{Call, Needs};
use super::roles::Grant;

/// How somebody showed who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not at all: nobody asks.
    Anonymous,
    /// By a static token.
    Token,
    /// By a JSON Web Token.
    Jwt,
    /// By a certificate.
    Certificate,
}

impl Kind {
    /// Its name in the audit log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Anonymous => "anonymous",
            Kind::Token => "token",
            Kind::Jwt => "jwt",
            Kind::Certificate => "certificate",
        }
    }
}

/// Somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of a token, subject of a JSON Web Token, or first name in a certificate.
    pub name: String,
    /// How it was shown.
    pub kind: Kind,
    pub(super) grants: Vec<Grant>,
    /// When the token that shows it ends, in nanoseconds since the Unix epoch; `None`: not by itself.
    pub(super) ends: Option<i64>,
}

impl Identity {
    /// Everybody, where nobody asks.
    pub(super) fn anonymous() -> Identity {
        let grants = vec![Grant::everything()];
        Identity { name: "anonymous".to_owned(), kind: Kind::Anonymous, grants, ends: None }
    }

    /// Whether a call is allowed, in a task hub where it is about one.
    #[must_use]
    pub fn may(&self, call: &Call, hub: &str) -> bool {
        call.needs.met_by(&self.grants, hub)
    }

    /// Whether it may read in a task hub that only the request names ([`Needs::ReadNamed`]).
    #[must_use]
    pub fn may_read(&self, hub: &str) -> bool {
        Needs::Read.met_by(&self.grants, hub)
    }

    /// Whether it has a role in the task hub.
    #[must_use]
    pub fn sees(&self, hub: &str) -> bool {
        self.grants.iter().any(|grant| grant.covers(hub))
    }
}

/// What a call brought to show who makes it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// The header `authorization`.
    pub authorization: Option<&'a [u8]>,
    /// The names in the certificate of the connection, where there is one.
    pub certificate: Option<&'a [String]>,
}

/// Why somebody is not known. The text is for the caller and says nothing about keys or tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Nothing was brought.
    #[error("no credentials: send the header `authorization: Bearer TOKEN`{0}")]
    Missing(&'static str),
    /// What was brought is not right.
    #[error("{0}")]
    Wrong(String),
    /// Signed with a key that is not known here, or not yet.
    #[error("the token is signed with a key that is not known here")]
    Key,
}
