//! The door of the gRPC port: a layer around all its services.
//!
//! It puts the [`Identity`] and a [`Subject`] into the request, for handlers that answer some more than
//! others, or that know which instance a call was about.

use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Extensions, Request, Response};
use tonic::{Code, Status};

use super::audit::Entry;
use super::standing::Standing;
use super::{Access, Call, Credentials, Denied, Identity, Needs, Unknown, calls};
use crate::tls::ConnectionInfo;

/// The hub of callers that name none (R1.8).
const DEFAULT_HUB: &str = "default";

/// Where a handler notes which instance a call is about, for the audit log.
#[derive(Clone, Debug, Default)]
pub struct Subject(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    instance: OnceLock<String>,
    hub: OnceLock<String>,
}

impl Subject {
    /// That of a request; one that nobody reads where nobody wants to know.
    #[must_use]
    pub fn of(extensions: &tonic::Extensions) -> Subject {
        extensions.get::<Subject>().cloned().unwrap_or_default()
    }

    /// Notes the instance, unless one is noted already.
    pub fn note(&self, instance: &str) {
        if !instance.is_empty() {
            let _ = self.0.instance.set(instance.to_owned());
        }
    }

    /// Notes the task hub of a request that names it inside ([`Needs::ReadNamed`]).
    pub fn note_hub(&self, hub: &str) {
        let _ = self.0.hub.set(hub.to_owned());
    }
}

/// Lets through what is allowed.
#[derive(Clone)]
pub struct AccessLayer(pub Access);

impl<S> tower_layer::Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, access: self.0.clone() }
    }
}

/// Services behind the door.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    access: Access,
}

impl<S, In> Service<Request<In>> for Guarded<S>
where
    S: Service<Request<In>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    In: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        let call = calls::rpc(request.uri().path());
        if let Some(call) = call
            && call.needs == Needs::Nothing
        {
            return Box::pin(self.inner.call(request));
        }
        // The one that is ready goes with the call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let access = self.access.clone();
        let judged = access.judge(call, &request);
        if let Ok(who) = &judged
            && !(access.0.audit.is_kept() && call.is_some_and(is_noted_after))
        {
            admit(request.extensions_mut(), who);
            let standing = Standing::of(&access, call, &request);
            let answer = inner.call(request);
            return match standing {
                None => Box::pin(answer),
                Some(standing) => Box::pin(standing.watch(answer)),
            };
        }
        Box::pin(async move {
            let judged = match judged {
                // Only now: it is rare, and takes its time.
                Err(Denied::Unknown(Unknown::Key)) => {
                    access.ask_issuer().await;
                    access.judge(call, &request)
                }
                judged => judged,
            };
            let note = Note::new(&request, call);
            match judged {
                Err(denied) => {
                    if call.is_some_and(|call| call.audited)
                        || matches!(denied, Denied::Forbidden(_))
                    {
                        let who = access.identify(&credentials(&request)).ok();
                        note.write(&access, who.as_deref(), false, None);
                    }
                    Ok(status(&denied, call).into_http())
                }
                Ok(who) => {
                    admit(request.extensions_mut(), &who);
                    request.extensions_mut().insert(note.subject.clone());
                    let standing = Standing::of(&access, call, &request);
                    let audited = call.is_some_and(|call| call.audited);
                    let mut line = Line { access, note, who, audited, allowed: true, code: None };
                    let answer = inner.call(request);
                    let answer = match standing {
                        None => answer.await?,
                        Some(standing) => standing.watch(answer).await?,
                    };
                    let code = code_of(&answer);
                    line.allowed = code != Code::PermissionDenied
                        || call.is_none_or(|call| call.needs != Needs::ReadNamed);
                    line.code = line.allowed.then_some(code);
                    Ok(answer)
                }
            }
        })
    }
}

impl Access {
    fn judge<In>(
        &self,
        call: Option<&'static Call>,
        request: &Request<In>,
    ) -> Result<Arc<Identity>, Denied> {
        let who = self.identify(&credentials(request))?;
        match call {
            Some(call) => self.authorize(&who, call, hub(request)).map(|()| who),
            None => Err(Denied::Forbidden(String::new())),
        }
    }
}

/// Whether its line in the audit log waits for the answer: an action's does, and that of a call whose handler
/// may find that it is not allowed.
fn is_noted_after(call: &Call) -> bool {
    call.audited || call.needs == Needs::ReadNamed
}

fn admit(extensions: &mut Extensions, who: &Arc<Identity>) {
    extensions.insert(Arc::clone(who));
}

/// What a request brought.
pub(super) fn credentials<In>(request: &Request<In>) -> Credentials<'_> {
    let shown = request.extensions().get::<ConnectionInfo>();
    Credentials {
        authorization: request.headers().get("authorization").map(|value| value.as_bytes()),
        certificate: shown.and_then(|info| info.certificate.as_ref()).map(|shown| shown.names()),
    }
}

/// The hub that a call names. A name that no hub can have is nobody's.
pub(super) fn hub<In>(request: &Request<In>) -> &str {
    match request.headers().get("taskhub") {
        None => DEFAULT_HUB,
        Some(value) => value.to_str().unwrap_or("\u{0}"),
    }
}

pub(super) fn status(denied: &Denied, call: Option<&'static Call>) -> Status {
    match (denied, call) {
        (Denied::Unknown(_), _) => Status::unauthenticated(denied.to_string()),
        // Nobody serves what the table does not know (R1.4).
        (Denied::Forbidden(_), None) => Status::unimplemented("no such call"),
        (Denied::Forbidden(text), Some(_)) => Status::permission_denied(text.clone()),
    }
}

/// What the audit log wants to know of a request, kept while it runs.
struct Note {
    call: Option<&'static Call>,
    from: String,
    hub: String,
    subject: Subject,
}

impl Note {
    fn new<In>(request: &Request<In>, call: Option<&'static Call>) -> Note {
        let info = request.extensions().get::<ConnectionInfo>();
        let from = info.map(|info| info.remote.to_string()).unwrap_or_default();
        Note { call, from, hub: hub(request).to_owned(), subject: Subject::default() }
    }

    fn write(&self, access: &Access, who: Option<&Identity>, allowed: bool, code: Option<Code>) {
        let about_hub = self.call.is_some_and(|call| call.needs.is_about_a_hub());
        let named = self.subject.0.hub.get().map_or("", String::as_str);
        access.0.audit.note(&Entry {
            who: who.map(|who| (who.name.as_str(), who.kind.name())),
            from: &self.from,
            what: self.call.map_or("?", Call::name),
            hub: if about_hub { &self.hub } else { named },
            subject: self.subject.0.instance.get().map_or("", String::as_str),
            allowed,
            code: code.map(|code| code as i32),
            removed: &[],
        });
    }
}

/// The line of a call that the door let through. It is written when the answer is known, or without one when the
/// caller goes away before: what was asked for may be done all the same.
struct Line {
    access: Access,
    note: Note,
    who: Arc<Identity>,
    audited: bool,
    allowed: bool,
    code: Option<Code>,
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.audited || !self.allowed {
            self.note.write(&self.access, Some(&self.who), self.allowed, self.code);
        }
    }
}

fn code_of<T>(answer: &Response<T>) -> Code {
    let code = answer.headers().get("grpc-status");
    code.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}
