//! What stands between the ports and strangers: certificates, the authorizer and the audit log, made from
//! the configuration, and made anew when their files change.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use durahub_cluster::admin::Guard;
use durahub_cluster::transport::{PeerInfo, Plain, Secure};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::access::{
    Access, AccessError, AccessSettings, Audit, Credentials, Denied, JwtSettings, KeySource,
    Unknown,
};
use crate::banner::Closed;
use crate::clock::Clock;
use crate::config::{self, AuthMode, Config};
use crate::spans::read_headers;
use crate::tls::{
    ClientFiles, ClientTls, HTTP1, HTTP2, PeerFiles, PeerTls, Plaintext, ServerFiles, ServerTls,
    TlsError,
};

/// All of it.
#[derive(Clone)]
pub(crate) struct Security {
    /// How connections to the gRPC port are wrapped.
    pub(crate) grpc: Option<(Arc<ServerTls>, Plaintext)>,
    /// How connections to the HTTP port are wrapped.
    pub(crate) http: Option<(Arc<ServerTls>, Plaintext)>,
    peer: Option<Arc<PeerTls>>,
    /// The authorizer.
    pub(crate) access: Access,
    audit: Audit,
    /// Files whose change is looked for.
    pub(crate) files: Vec<PathBuf>,
}

/// Files that cannot be used, a sentence each, all of them.
#[derive(Debug, thiserror::Error)]
pub(crate) struct Unusable(Vec<String>);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [problem] => f.write_str(problem),
            problems => {
                write!(f, "{} parts of the configuration cannot be used:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// What can be made from files alone.
#[derive(Default)]
struct Loaded {
    grpc: Option<(Arc<ServerTls>, Plaintext)>,
    http: Option<(Arc<ServerTls>, Plaintext)>,
    peer: Option<Arc<PeerTls>>,
}

/// Reads all files that can be read without changing anything, and notes all that is wrong with them.
fn load(config: &Config, problems: &mut Vec<String>) -> Loaded {
    let tls = &config.tls;
    let mut loaded = Loaded::default();
    let mut wrong = |what: &str, error: String| problems.push(format!("{what}: {error}"));
    let files = tls.cert_file.clone().zip(tls.key_file.clone()).map(|(cert, key)| ServerFiles {
        cert,
        key,
        client_ca: tls.client_ca_file.clone(),
    });
    let plaintext = match tls.plaintext {
        config::Plaintext::Loopback => Plaintext::Loopback,
        config::Plaintext::Never => Plaintext::Never,
        config::Plaintext::Always => Plaintext::Always,
    };
    let port = |speaks| {
        let tls = files.clone().map(|files| ServerTls::load(files, speaks)).transpose();
        tls.map(|tls| tls.map(|tls| (Arc::new(tls), plaintext)))
    };
    match port(HTTP2) {
        Ok(grpc) => loaded.grpc = grpc,
        Err(error) => wrong("set up TLS (tls.cert_file)", error.to_string()),
    }
    // The same files: what is wrong with them is told.
    if tls.http {
        loaded.http = port(HTTP1).unwrap_or_default();
    }
    match peer_files(config).map(PeerTls::load).transpose() {
        Ok(peer) => loaded.peer = peer.map(Arc::new),
        Err(error) => wrong("set up TLS between nodes (peer_tls)", error.to_string()),
    }
    let jwt = &config.auth.jwt;
    if let (Some(_), ca @ Some(_)) = (&jwt.jwks_url, &jwt.jwks_ca_file) {
        let files = ClientFiles { ca: ca.clone(), identity: None };
        if let Err(error) = ClientTls::load(&files, HTTP1) {
            wrong("set up authentication (auth.jwt.jwks_ca_file)", error.to_string());
        }
    }
    loaded
}

/// What the authorizer has to say.
fn of_access(AccessError(found): AccessError) -> impl Iterator<Item = String> {
    found.into_iter().map(|text| format!("set up authentication (auth): {text}"))
}

/// Notes what is wrong with files that are opened later.
fn look_at_others(config: &Config, problems: &mut Vec<String>) {
    if let Some(path) = config.audit.file.as_ref().filter(|path| path.as_os_str() != "-") {
        let text = |error: std::io::Error| {
            format!("open the audit log {} (audit.file): {error}", path.display())
        };
        problems.extend(Audit::check(path).map_err(text).err());
    }
    let tracing = &config.tracing;
    if tracing.endpoint.is_some() {
        let files = ClientFiles { ca: tracing.ca_file.clone(), identity: None };
        let wrong = |error: TlsError| format!("set up tracing (tracing.ca_file): {error}");
        problems.extend(ClientTls::load(&files, HTTP2).map_err(wrong).err());
        let read = tracing.headers_file.as_deref().map(read_headers).transpose();
        let wrong = |error| format!("set up tracing (tracing.headers_file): {error}");
        problems.extend(read.map_err(wrong).err());
    }
}

/// Whether the files that the configuration names can be used. Nothing is created, and nobody is asked.
///
/// # Errors
/// [`Unusable`] with all that is wrong.
pub(crate) fn check(config: &Config) -> Result<(), Unusable> {
    let mut problems = Vec::new();
    load(config, &mut problems);
    look_at_others(config, &mut problems);
    problems.extend(
        Access::check(&access_settings(&config.auth)).err().into_iter().flat_map(of_access),
    );
    if problems.is_empty() { Ok(()) } else { Err(Unusable(problems)) }
}

impl Security {
    /// Reads all files, and asks the issuer of tokens for its keys.
    ///
    /// # Errors
    /// With all that cannot be used.
    pub(crate) async fn start(config: &Config, clock: &Clock) -> anyhow::Result<Security> {
        let (mut problems, settings) = (Vec::new(), access_settings(&config.auth));
        let Loaded { grpc, http, peer } = load(config, &mut problems);
        look_at_others(config, &mut problems);
        if !problems.is_empty() {
            problems.extend(Access::check(&settings).err().into_iter().flat_map(of_access));
            return Err(Unusable(problems).into());
        }
        let audit = match &config.audit.file {
            None => Audit::default(),
            Some(path) => Audit::start(path.clone(), clock.clone())
                .with_context(|| format!("open the audit log {} (audit.file)", path.display()))?,
        };
        let access = Access::start(settings, audit.clone(), clock.clone()).await;
        let access = access.map_err(|error| Unusable(of_access(error).collect()))?;
        Ok(Security { grpc, http, peer, access, audit, files: watched(config) })
    }

    /// How connections between nodes are wrapped.
    pub(crate) fn peers(&self) -> Arc<dyn Secure> {
        match &self.peer {
            Some(tls) => Arc::clone(tls) as Arc<dyn Secure>,
            None => Arc::new(Plain),
        }
    }

    /// Who may operate the cluster.
    pub(crate) fn operators(&self) -> Arc<dyn Guard> {
        Arc::new(Operators(self.access.clone()))
    }

    /// What is closed, for the banner.
    pub(crate) fn closed(&self) -> Closed {
        Closed {
            auth: !self.access.is_open(),
            grpc_tls: self.grpc.is_some(),
            http_tls: self.http.is_some(),
            peer_tls: self.peer.is_some(),
            peer_name: self.peer.as_ref().is_some_and(|peer| peer.has_one_name()),
        }
    }

    /// Reads all files again. What cannot be used stays as it was; each part says what became of it.
    pub(crate) fn reload(&self) -> Vec<(&'static str, anyhow::Result<()>)> {
        let ports = [("certificate", &self.grpc), ("certificate of the HTTP port", &self.http)];
        let ports = ports.into_iter().filter_map(|(what, port)| Some((what, port.as_ref()?)));
        let ports = ports.map(|(what, (tls, _))| (what, tls.reload().map_err(Into::into)));
        let peer = self.peer.iter();
        let peer = peer.map(|tls| ("peer certificate", tls.reload().map_err(Into::into)));
        let access = ("authentication", self.access.reload().map_err(Into::into));
        ports.chain(peer).chain([access]).collect()
    }

    /// Where a node notes what it does by itself.
    pub(crate) fn audit(&self) -> Audit {
        self.audit.clone()
    }

    /// Opens the audit log again, as after a rotation.
    pub(crate) fn reopen_audit(&self) {
        self.audit.reopen();
    }
}

fn peer_files(config: &Config) -> Option<PeerFiles> {
    let tls = &config.peer_tls;
    Some(PeerFiles {
        cert: tls.cert_file.clone()?,
        key: tls.key_file.clone()?,
        ca: tls.ca_file.clone()?,
        name: tls.name.clone(),
    })
}

fn access_settings(auth: &config::Auth) -> AccessSettings {
    let uses = |mode: AuthMode| auth.mode.contains(&mode);
    let jwt = &auth.jwt;
    let keys = match (&jwt.jwks_file, &jwt.jwks_url) {
        (Some(path), _) => Some(KeySource::File(path.clone())),
        (None, Some(url)) => Some(KeySource::Url {
            url: url.clone(),
            ca: jwt.jwks_ca_file.clone(),
            refresh: jwt.jwks_refresh,
        }),
        (None, None) => None,
    };
    AccessSettings {
        closed: !auth.mode.is_empty(),
        tokens: auth.tokens_file.clone().filter(|_| uses(AuthMode::Token)),
        jwt: keys.filter(|_| uses(AuthMode::Jwt)).map(|keys| JwtSettings {
            keys,
            issuer: jwt.issuer.clone(),
            audience: jwt.audience.clone(),
            clock_skew: jwt.clock_skew,
            name_claim: jwt.name_claim.clone(),
        }),
        certificates: uses(AuthMode::Certificate),
        grants: auth.grants.clone(),
        grants_file: auth.grants_file.clone(),
        open_metrics: auth.open_metrics,
    }
}

/// Every file that is read again when it changes.
fn watched(config: &Config) -> Vec<PathBuf> {
    let (tls, peer, auth) = (&config.tls, &config.peer_tls, &config.auth);
    let all = [
        &tls.cert_file,
        &tls.key_file,
        &tls.client_ca_file,
        &peer.cert_file,
        &peer.key_file,
        &peer.ca_file,
        &auth.tokens_file,
        &auth.grants_file,
        &auth.jwt.jwks_file,
    ];
    all.into_iter().flatten().cloned().collect()
}

/// Admits operators to the peer port.
struct Operators(Access);

impl Guard for Operators {
    fn admit(
        &self,
        method: &str,
        subject: &str,
        headers: &MetadataMap,
        connection: &PeerInfo,
    ) -> Result<(), Status> {
        // Where nodes must show a certificate and operators have no other way to say who they are, they must too.
        if connection.secured && connection.shown.is_none() && self.0.is_open() {
            return Err(Status::unauthenticated(
                "show a certificate that the nodes trust (--cert-file)",
            ));
        }
        let credentials = Credentials {
            authorization: headers.get("authorization").map(|value| value.as_bytes()),
            certificate: connection.shown.as_ref().map(|shown| shown.names()),
        };
        self.0.operator(method, subject, &credentials).map_err(|denied| match denied {
            Denied::Unknown(Unknown::Key) => {
                Status::unauthenticated(format!("{denied}; if it is new, ask again in a moment"))
            }
            Denied::Unknown(_) => Status::unauthenticated(denied.to_string()),
            Denied::Forbidden(text) => Status::permission_denied(text),
        })
    }
}
