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
    Access, AccessSettings, Audit, Credentials, Denied, JwtSettings, KeySource, Unknown,
};
use crate::banner::Closed;
use crate::clock::Clock;
use crate::config::{self, AuthMode, Config};
use crate::tls::{HTTP1, HTTP2, PeerFiles, PeerTls, Plaintext, ServerFiles, ServerTls};

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

impl Security {
    /// Reads all files.
    ///
    /// # Errors
    /// When one cannot be used.
    pub(crate) async fn start(config: &Config, clock: &Clock) -> anyhow::Result<Security> {
        let tls = &config.tls;
        let files = tls
            .cert_file
            .clone()
            .zip(tls.key_file.clone())
            .map(|(cert, key)| ServerFiles { cert, key, client_ca: tls.client_ca_file.clone() });
        let plaintext = match tls.plaintext {
            config::Plaintext::Loopback => Plaintext::Loopback,
            config::Plaintext::Never => Plaintext::Never,
            config::Plaintext::Always => Plaintext::Always,
        };
        let port = |speaks, plaintext| -> anyhow::Result<_> {
            let Some(files) = files.clone() else { return Ok(None) };
            let tls = ServerTls::load(files, speaks).context("set up TLS (tls.cert_file)")?;
            Ok(Some((Arc::new(tls), plaintext)))
        };
        let grpc = port(HTTP2, plaintext)?;
        let http = if tls.http { port(HTTP1, plaintext)? } else { None };
        let peer = peer_files(config).map(PeerTls::load).transpose();
        let peer = peer.context("set up TLS between nodes (peer_tls)")?.map(Arc::new);
        let audit = match &config.audit.file {
            None => Audit::default(),
            Some(path) => Audit::start(path.clone(), clock.clone())
                .with_context(|| format!("open the audit log {} (audit.file)", path.display()))?,
        };
        let settings = access_settings(&config.auth);
        let access = Access::start(settings, audit.clone(), clock.clone()).await;
        let access = access.context("set up authentication (auth)")?;
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
