//! What a node is told about who may connect and do what.

use std::path::PathBuf;
use std::time::Duration;

/// TLS towards clients, at the gRPC and HTTP ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the certificate of this server, and those that signed it. TLS is on when it is set.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its private key; set exactly when the certificate is.
    pub key_file: Option<PathBuf>,
    /// PEM file with the certificates that sign those of clients.
    pub client_ca_file: Option<PathBuf>,
    /// Whose connections without TLS are taken at the gRPC port although TLS is on.
    pub plaintext: Plaintext,
    /// Whether the HTTP port speaks TLS too.
    pub http: bool,
}

/// Whose connections without TLS are taken although TLS is on (R1.22).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plaintext {
    /// Those of programs on this machine.
    Loopback,
    /// Nobody's.
    Never,
    /// Everybody's.
    Always,
}

/// Mutual TLS between nodes, at the peer port. On when all three files are set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerTls {
    /// PEM file with the certificate of this node, and those that signed it.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    pub key_file: Option<PathBuf>,
    /// PEM file with the certificates that sign those of the nodes.
    pub ca_file: Option<PathBuf>,
    /// Name that the certificate of every node carries; `None`: the host of its peer address.
    pub name: Option<String>,
}

/// A way to say who one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// A static token, known by its hash.
    Token,
    /// A signed JSON Web Token.
    Jwt,
    /// A certificate shown when the connection was made.
    Certificate,
}

/// Who callers are and what they may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// Ways to say who one is; none: everybody may do everything.
    pub mode: Vec<AuthMode>,
    /// TOML file with static tokens.
    pub tokens_file: Option<PathBuf>,
    /// Grants, each a valid `WHO=ROLE@HUB`.
    pub grants: Vec<String>,
    /// TOML file with more grants.
    pub grants_file: Option<PathBuf>,
    /// Whether `/metrics` answers everybody.
    pub open_metrics: bool,
    /// What makes a JSON Web Token valid.
    pub jwt: Jwt,
}

/// What makes a JSON Web Token valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwt {
    /// JSON file with the public keys.
    pub jwks_file: Option<PathBuf>,
    /// Where the public keys are.
    pub jwks_url: Option<String>,
    /// PEM file with the certificates that sign that of the URL; `None`: those that the machine trusts.
    pub jwks_ca_file: Option<PathBuf>,
    /// How often the URL is asked again, 1 s to 24 h.
    pub jwks_refresh: Duration,
    /// Issuer that every token must have.
    pub issuer: String,
    /// Audiences of which every token must have one.
    pub audience: Vec<String>,
    /// How far the issuer's clock may be off, up to 10 min.
    pub clock_skew: Duration,
    /// Claim that names the caller.
    pub name_claim: String,
}

/// The audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// File that lines are added to; `-` is standard output, `None` keeps no audit log.
    pub file: Option<PathBuf>,
}

impl Plaintext {
    const ALL: [Plaintext; 3] = [Plaintext::Loopback, Plaintext::Never, Plaintext::Always];

    pub(super) fn parse(name: &str) -> Option<Plaintext> {
        Self::ALL.into_iter().find(|who| who.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Plaintext::Loopback => "loopback",
            Plaintext::Never => "never",
            Plaintext::Always => "always",
        }
    }
}

impl AuthMode {
    const ALL: [AuthMode; 3] = [AuthMode::Token, AuthMode::Jwt, AuthMode::Certificate];

    pub(super) fn parse(name: &str) -> Option<AuthMode> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            AuthMode::Token => "token",
            AuthMode::Jwt => "jwt",
            AuthMode::Certificate => "certificate",
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Tls {
            cert_file: None,
            key_file: None,
            client_ca_file: None,
            plaintext: Plaintext::Loopback,
            http: true,
        }
    }
}

impl Default for Jwt {
    fn default() -> Self {
        Jwt {
            jwks_file: None,
            jwks_url: None,
            jwks_ca_file: None,
            jwks_refresh: Duration::from_secs(300),
            issuer: String::new(),
            audience: Vec::new(),
            clock_skew: Duration::from_secs(60),
            name_claim: "sub".to_owned(),
        }
    }
}

/// What is wrong with settings that are each fine alone: key, value, remedy.
pub(super) fn check(
    tls: &Tls,
    peer_tls: &PeerTls,
    auth: &Auth,
    mut problem: impl FnMut(&str, String, &str),
) {
    let none = || "\"\"".to_owned();
    let pairs = [
        ("tls.cert_file", &tls.cert_file, "tls.key_file", &tls.key_file),
        ("peer_tls.cert_file", &peer_tls.cert_file, "peer_tls.key_file", &peer_tls.key_file),
        ("peer_tls.cert_file", &peer_tls.cert_file, "peer_tls.ca_file", &peer_tls.ca_file),
    ];
    for (one, is_one, other, is_other) in pairs {
        match (is_one, is_other) {
            (Some(_), None) => problem(other, none(), &format!("set together with {one}")),
            (None, Some(path)) => {
                let path = format!("{:?}", path.display().to_string());
                problem(other, path, &format!("left out without {one}"));
            }
            _ => {}
        }
    }
    let uses = |mode: AuthMode| auth.mode.contains(&mode);
    if uses(AuthMode::Certificate) && (tls.client_ca_file.is_none() || tls.cert_file.is_none()) {
        let remedy = "certificate only with tls.cert_file and tls.client_ca_file";
        problem("auth.mode", "\"certificate\"".into(), remedy);
    }
    if uses(AuthMode::Token) && auth.tokens_file.is_none() {
        problem("auth.tokens_file", none(), "set to a file with tokens for auth.mode token");
    }
    if uses(AuthMode::Jwt) {
        let jwt = &auth.jwt;
        if jwt.jwks_file.is_some() == jwt.jwks_url.is_some() {
            let remedy = "one of auth.jwt.jwks_file and auth.jwt.jwks_url for auth.mode jwt";
            problem("auth.jwt.jwks_file", none(), remedy);
        }
        if jwt.issuer.is_empty() {
            problem("auth.jwt.issuer", none(), "set for auth.mode jwt");
        }
        if jwt.audience.is_empty() {
            problem("auth.jwt.audience", "[]".into(), "set for auth.mode jwt");
        }
    }
}
