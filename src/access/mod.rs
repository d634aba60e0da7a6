//! Who may do what: every call to a port of this node passes through here, and nothing else decides.
//!
//! A call brings credentials: a header, or the certificate of its connection. They make it somebody, an
//! [`Identity`] with grants; the table of calls says what the call needs; the two are compared. Whoever is
//! nobody hears `UNAUTHENTICATED`, whoever lacks a role `PERMISSION_DENIED` (R1.15). What does not stand in
//! the table is not allowed. A call that lasts is judged when it begins, and again when its token ends or
//! what counts is read anew (R1.14).
//!
//! - [`roles`]: roles, grants, and the rules that hand them out;
//! - [`calls`]: what each call needs;
//! - [`identity`]: who somebody is;
//! - [`tokens`]: static tokens, known by their hashes;
//! - [`jwt`], [`verify`], [`fetch`]: JSON Web Tokens, their signatures, and the keys of their issuer;
//! - [`audit`]: what was done and decided, line by line;
//! - [`layer`]: the gRPC port's door; that of the HTTP port is [`Access::page`], that of the peer port
//!   [`Access::operator`];
//! - [`standing`]: streams and waits end with what allowed them.

mod audit;
mod calls;
mod fetch;
mod identity;
mod jwt;
mod layer;
mod roles;
mod standing;
mod tokens;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};

pub use audit::Audit;
pub use calls::{Call, Needs, all as all_calls, rpc};
pub use identity::{Credentials, Identity, Kind, Unknown};
pub use jwt::{JwtSettings, KeySource};
pub use layer::{AccessLayer, Guarded, Subject};
pub use roles::{Grant, Role, Rule};
pub use tokens::new_token;

use crate::clock::Clock;
use jwt::Keys;
use roles::Rules;
use tokens::{Hash, Token};

/// Tokens whose signature is not checked again for a while.
const REMEMBERED: usize = 4096;
/// Shortest time between two questions for the keys of the issuer.
const KEYS_PAUSE: i64 = 5_000_000_000;
/// Calls that may wait for an answer of the issuer at the same time: nobody knows who makes them.
const WAITING: usize = 1024;

/// How callers are known, and what they are granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessSettings {
    /// Whether anybody is asked at all. If not, everybody may do everything.
    pub closed: bool,
    /// File with static tokens, if they count.
    pub tokens: Option<PathBuf>,
    /// What makes a JSON Web Token valid, if they count.
    pub jwt: Option<JwtSettings>,
    /// Whether certificates count.
    pub certificates: bool,
    /// Grants, each a valid rule.
    pub grants: Vec<String>,
    /// File with more grants.
    pub grants_file: Option<PathBuf>,
    /// Whether `/metrics` answers everybody.
    pub open_metrics: bool,
}

/// Files or keys that cannot be used, a sentence each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct AccessError(pub Vec<String>);

/// Why a call is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nobody knows who makes it.
    #[error("{0}")]
    Unknown(#[from] Unknown),
    /// It is known who, and that is not enough.
    #[error("{0}")]
    Forbidden(String),
}

/// The one authorizer of a node; a cheap handle.
#[derive(Clone)]
pub struct Access(Arc<Shared>);

struct Shared {
    settings: AccessSettings,
    audit: Audit,
    clock: Clock,
    anonymous: Arc<Identity>,
    state: RwLock<Arc<State>>,
    /// When the issuer was asked last; held while it is asked.
    asked: AsyncMutex<i64>,
    /// Places for those who wait for that.
    waiting: Semaphore,
    /// Tells those who stay that something was read.
    changes: watch::Sender<()>,
}

/// What was read last.
#[derive(Default)]
struct State {
    tokens: BTreeMap<Hash, Token>,
    rules: Rules,
    keys: Option<Keys>,
    /// JSON Web Tokens that were valid, by their hash, and until when.
    remembered: Mutex<BTreeMap<Hash, (Arc<Identity>, i64)>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantsFile {
    #[serde(default)]
    grants: Vec<String>,
}

impl Access {
    /// Reads the files, and asks the issuer for its keys. An issuer that gives no answer is not an error: it is
    /// asked again.
    ///
    /// # Errors
    /// [`AccessError`] when a file cannot be used.
    pub async fn start(
        settings: AccessSettings,
        audit: Audit,
        clock: Clock,
    ) -> Result<Access, AccessError> {
        verify::install();
        let state = RwLock::new(Arc::new(read(&settings)?));
        let anonymous = Arc::new(Identity::anonymous());
        let (asked, waiting) = (AsyncMutex::new(i64::MIN / 2), Semaphore::new(WAITING));
        let changes = watch::Sender::default();
        let shared = Shared { settings, audit, clock, anonymous, state, asked, waiting, changes };
        let access = Access(Arc::new(shared));
        access.ask_issuer().await;
        Ok(access)
    }

    /// Reads the files as [`Access::start`] would, and asks nobody.
    ///
    /// # Errors
    /// [`AccessError`] with all that is wrong with them.
    pub fn check(settings: &AccessSettings) -> Result<(), AccessError> {
        verify::install();
        read(settings).map(drop)
    }

    /// Reads the files again. Streams of callers that still may have them go on.
    ///
    /// # Errors
    /// [`AccessError`]; what was read before stays.
    pub fn reload(&self) -> Result<(), AccessError> {
        let mut state = read(&self.0.settings)?;
        let mut current = self.0.state.write();
        if self.refresh().is_some() {
            // Those of now, not of before the files were read: the issuer may have been asked meanwhile.
            state.keys = current.keys.clone();
        }
        *current = Arc::new(state);
        drop(current);
        self.0.changes.send_replace(());
        Ok(())
    }

    /// Asks the issuer for its keys from time to time, for as long as the node runs.
    pub async fn keep_keys(self) {
        let Some(refresh) = self.refresh() else { return };
        let mut ticks = tokio::time::interval(refresh);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.ask_issuer().await;
        }
    }

    /// Whether everybody may do everything.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.0.settings.closed
    }

    fn refresh(&self) -> Option<Duration> {
        match self.0.settings.jwt.as_ref()?.keys {
            KeySource::Url { refresh, .. } => Some(refresh),
            KeySource::File(_) => None,
        }
    }

    /// Asks, unless that was done just now, or too many wait for it.
    async fn ask_issuer(&self) {
        let Some(JwtSettings { keys: KeySource::Url { url, ca, .. }, .. }) = &self.0.settings.jwt
        else {
            return;
        };
        let Ok(_place) = self.0.waiting.try_acquire() else { return };
        let mut asked = self.0.asked.lock().await;
        if self.0.clock.now() - *asked < KEYS_PAUSE {
            return;
        }
        let fetched = fetch::get(url, ca.clone()).await.and_then(|text| Keys::parse(&text));
        match fetched {
            Ok(keys) => {
                let mut state = self.0.state.write();
                let (tokens, rules) = (state.tokens.clone(), state.rules.clone());
                // Nothing is remembered: a key may have been taken away.
                *state = Arc::new(State {
                    tokens,
                    rules,
                    keys: Some(keys),
                    remembered: Mutex::default(),
                });
                drop(state);
                self.0.changes.send_replace(());
            }
            Err(error) => {
                tracing::warn!(url, %error, "the keys of the token issuer could not be fetched");
            }
        }
        *asked = self.0.clock.now();
    }

    /// Says who makes a call.
    ///
    /// # Errors
    /// [`Unknown`]. [`Unknown::Key`] may be over once the issuer was asked.
    pub fn identify(&self, credentials: &Credentials<'_>) -> Result<Arc<Identity>, Unknown> {
        if self.is_open() {
            return Ok(self.0.anonymous.clone());
        }
        let (settings, state) = (&self.0.settings, self.0.state.read().clone());
        match (credentials.authorization, credentials.certificate) {
            (Some(header), _) if settings.tokens.is_some() || settings.jwt.is_some() => {
                self.by_token(&state, header)
            }
            (_, Some(names)) if settings.certificates => {
                let granted = names.iter().flat_map(|name| state.rules.of_name(name)).cloned();
                let grants = granted.collect();
                let name = names.first().cloned().unwrap_or_default();
                Ok(Arc::new(Identity { name, kind: Kind::Certificate, grants, ends: None }))
            }
            _ => Err(Unknown::Missing(match settings.certificates {
                true => ", or show a certificate that this server trusts",
                false => "",
            })),
        }
    }

    fn by_token(&self, state: &State, header: &[u8]) -> Result<Arc<Identity>, Unknown> {
        let wrong = |text: &str| Unknown::Wrong(text.to_owned());
        let bearer = std::str::from_utf8(header).ok().and_then(|text| text.split_once(' '));
        let Some((_, token)) = bearer.filter(|(word, _)| word.eq_ignore_ascii_case("bearer"))
        else {
            return Err(wrong("the header authorization must be `Bearer TOKEN`"));
        };
        let (token, now) = (token.trim(), self.0.clock.now());
        let hash = tokens::hash(token.as_bytes());
        if let Some(token) = state.tokens.get(&hash) {
            if token.expires.is_some_and(|expires| expires <= now) {
                return Err(wrong("the token has expired"));
            }
            let by_name = state.rules.of_name(&token.name).iter();
            let grants = token.grants.iter().chain(by_name).cloned().collect();
            let name = token.name.clone();
            let ends = token.expires;
            return Ok(Arc::new(Identity { name, kind: Kind::Token, grants, ends }));
        }
        let Some(settings) = &self.0.settings.jwt else {
            return Err(wrong("the token is not known here"));
        };
        if let Some((identity, ends)) = state.remembered.lock().get(&hash)
            && *ends > now
        {
            return Ok(identity.clone());
        }
        let claims = jwt::check(token, state.keys.as_ref().ok_or(Unknown::Key)?, settings)?;
        let mut grants = state.rules.of_claims(&claims.claims);
        grants.extend_from_slice(state.rules.of_name(&claims.name));
        let identity = Arc::new(Identity {
            name: claims.name,
            kind: Kind::Jwt,
            grants,
            ends: Some(claims.ends),
        });
        let mut remembered = state.remembered.lock();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(hash, (identity.clone(), claims.ends));
        Ok(identity)
    }

    /// The same; a token of a key that is not known makes the issuer be asked first.
    ///
    /// # Errors
    /// [`Unknown`].
    pub async fn identify_or_ask(
        &self,
        credentials: &Credentials<'_>,
    ) -> Result<Arc<Identity>, Unknown> {
        match self.identify(credentials) {
            Err(Unknown::Key) if self.refresh().is_some() => {
                self.ask_issuer().await;
                self.identify(credentials)
            }
            known => known,
        }
    }

    /// Compares what a call needs with what its caller was granted.
    ///
    /// # Errors
    /// [`Denied::Forbidden`] with a sentence that says what is missing.
    pub fn authorize(&self, who: &Identity, call: &Call, hub: &str) -> Result<(), Denied> {
        if who.may(call, hub) {
            return Ok(());
        }
        let place = match call.needs.is_about_a_hub() {
            true => format!(" in the task hub {hub:?}"),
            false => String::new(),
        };
        let (name, what, least) = (&who.name, call.name(), call.needs.least());
        Err(Denied::Forbidden(format!(
            "{name:?} may not call {what}{place}: it needs {least}; ask an operator for a grant (auth.grants)"
        )))
    }

    /// Judges a request for a page of the HTTP port.
    ///
    /// # Errors
    /// [`Denied`].
    pub async fn page(&self, path: &str, credentials: &Credentials<'_>) -> Result<(), Denied> {
        const OTHER: Call = Call { path: "/", needs: Needs::Operate, audited: false };
        let call = calls::page(path).unwrap_or(&OTHER);
        let open = call.needs == Needs::Nothing
            || (path == "/metrics" && self.0.settings.open_metrics)
            || self.is_open();
        if open {
            return Ok(());
        }
        let who = self.identify_or_ask(credentials).await?;
        self.authorize(&who, call, "")
    }

    /// Judges a call of an operator to the peer port, and notes it. `subject` says what it is about.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn operator(
        &self,
        method: &str,
        subject: &str,
        credentials: &Credentials<'_>,
    ) -> Result<(), Denied> {
        let who = self.identify(credentials);
        let call = calls::operator(method);
        let judged = match (&who, call) {
            (Err(unknown), _) => Err(Denied::Unknown(unknown.clone())),
            (Ok(_), None) => Err(Denied::Forbidden(format!("{method} is not known here"))),
            (Ok(who), Some(call)) => self.authorize(who, call, ""),
        };
        if judged.is_err() || call.is_some_and(|call| call.audited) {
            self.0.audit.note(&audit::Entry {
                who: who.as_ref().ok().map(|who| (who.name.as_str(), who.kind.name())),
                from: "peer port",
                what: method,
                hub: "",
                subject,
                allowed: judged.is_ok(),
                code: None,
                removed: &[],
            });
        }
        judged
    }
}

/// Reads all files. Keys of a URL are not there yet.
fn read(settings: &AccessSettings) -> Result<State, AccessError> {
    let mut problems = Vec::new();
    let tokens = match &settings.tokens {
        Some(path) => tokens::read(path, &mut problems),
        None => BTreeMap::new(),
    };
    let mut rules: Vec<Rule> =
        settings.grants.iter().filter_map(|text| Rule::parse(text)).collect();
    if let Some(path) = &settings.grants_file {
        let file = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|text| {
                toml::from_str::<GrantsFile>(&text).map_err(|error| error.message().to_owned())
            });
        match file {
            Err(text) => problems.push(format!("{}: {text}", path.display())),
            Ok(file) => {
                for text in file.grants {
                    match Rule::parse(&text) {
                        Some(rule) => rules.push(rule),
                        None => problems
                            .push(format!("{}: {text:?} is not WHO=ROLE@HUB", path.display())),
                    }
                }
            }
        }
    }
    let keys = match settings.jwt.as_ref().map(|jwt| &jwt.keys) {
        Some(KeySource::File(path)) => {
            let read = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"));
            let keys = read.and_then(|text| Keys::parse(&text));
            keys.map_err(|text| problems.push(format!("{}: {text}", path.display()))).ok()
        }
        _ => None,
    };
    if !problems.is_empty() {
        return Err(AccessError(problems));
    }
    Ok(State { tokens, rules: Rules::new(rules), keys, remembered: Mutex::default() })
}
