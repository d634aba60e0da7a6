//! The task that sends finished spans to the collector, some at a time.
//!
//! A collector that is away is noted once, with one line in the log, and once more when it is back. Some spans are
//! tried again for a moment; what cannot be sent by then is dropped and counted. Nothing waits for this task but the
//! end of the node, and that not for long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use durahub_proto::otlp::trace_service_client::TraceServiceClient;
use durahub_proto::otlp::{
    ExportTraceServiceRequest, InstrumentationScope, Resource, ResourceSpans, ScopeSpans, Span,
};
use metrics::{Counter, counter};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::{Settings, make};
use crate::telemetry::metrics as names;
use crate::tls::{ClientFiles, ClientTls, Dial, HTTP2, TlsError};

/// Spans of one call.
const BATCH: usize = 512;
/// How long the first span of a call waits for others.
const GATHER: Duration = Duration::from_millis(500);
/// Time for one call.
const CALL_TIME: Duration = Duration::from_secs(10);
/// Calls for the same spans, while the collector was there the last time.
const TRIES: u32 = 3;
/// Pause before the second of them; doubled before the third, and between calls while the collector is away.
const PAUSE: Duration = Duration::from_millis(500);
/// Time for what is left when the node stops.
const LAST_TIME: Duration = Duration::from_secs(2);

/// What the exporter cannot begin with.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The URL cannot be dialled.
    #[error("the collector's URL {0:?} cannot be used")]
    Url(String),
    /// The certificates cannot be used.
    #[error("read the collector's certificates")]
    Tls(#[from] TlsError),
    /// The headers cannot be used; what is wrong with them is told without a value.
    #[error("{0}")]
    Headers(String),
}

/// Headers of a call.
pub type Headers = Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>;

/// The headers of a file, `name: value` on each line; empty lines and lines that begin with `#` say nothing.
///
/// # Errors
/// A sentence that names the file and the line, and never a value.
pub fn read_headers(path: &Path) -> Result<Headers, String> {
    let wrong = |text: String| format!("{}: {text}", path.display());
    let text =
        std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let lines = text.lines().map(str::trim).zip(1..);
    let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    let mut read = Headers::new();
    for (line, number) in lines {
        let header = header(line);
        read.push(header.ok_or_else(|| wrong(format!("line {number} is not `name: value`")))?);
    }
    Ok(read)
}

fn header(line: &str) -> Option<(MetadataKey<Ascii>, MetadataValue<Ascii>)> {
    let (name, value) = line.split_once(':')?;
    let name = MetadataKey::from_bytes(name.trim().to_ascii_lowercase().as_bytes()).ok()?;
    let mut value: MetadataValue<Ascii> = value.trim().parse().ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

/// Spans that are being sent.
#[derive(Debug)]
pub struct Exporting {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Exporting {
    pub(super) fn start(
        settings: Settings,
        finished: mpsc::Receiver<Span>,
    ) -> Result<Exporting, ExportError> {
        let files = ClientFiles { ca: settings.ca_file.clone(), identity: None };
        let dial = Dial(ClientTls::load(&files, HTTP2)?);
        let endpoint = Endpoint::from_shared(settings.endpoint.clone())
            .map_err(|_| ExportError::Url(settings.endpoint.clone()))?;
        if let Some(path) = &settings.headers_file {
            read_headers(path).map_err(ExportError::Headers)?;
        }
        let channel = endpoint.connect_timeout(CALL_TIME).connect_with_connector_lazy(dial);
        let dropped = |reason: &'static str| counter!(names::SPANS_DROPPED, "reason" => reason);
        let exporter = Exporter {
            client: TraceServiceClient::new(channel),
            resource: resource(&settings),
            endpoint: settings.endpoint,
            headers_file: settings.headers_file,
            finished,
            is_away: false,
            sent: counter!(names::SPANS_SENT),
            unsent: dropped("unsent"),
            refused: dropped("refused"),
        };
        let (stop, stopped) = oneshot::channel();
        Ok(Exporting { stop, task: tokio::spawn(exporter.run(stopped)) })
    }

    /// Sends what is left, if that is done soon, and sends no more.
    pub async fn stop(mut self) {
        let _ = self.stop.send(());
        if tokio::time::timeout(LAST_TIME, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

fn resource(settings: &Settings) -> Resource {
    let own = [
        ("service.name", settings.service_name.clone()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", settings.node.to_string()),
    ];
    let own = own.iter().filter(|(key, _)| !settings.resource.contains_key(*key));
    let own = own.map(|(key, value)| make::text(key, value));
    let told = settings.resource.iter().map(|(key, value)| make::text(key, value));
    Resource { attributes: own.chain(told).collect() }
}

struct Exporter {
    client: TraceServiceClient<Channel>,
    resource: Resource,
    endpoint: String,
    headers_file: Option<PathBuf>,
    finished: mpsc::Receiver<Span>,
    /// The last call failed.
    is_away: bool,
    sent: Counter,
    unsent: Counter,
    refused: Counter,
}

impl Exporter {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut spans = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                first = self.finished.recv() => match first {
                    Some(first) => spans.push(first),
                    None => return,
                },
                _ = &mut stopped => return self.send_the_rest().await,
            }
            let gathering = self.gather(&mut spans);
            tokio::select! {
                () = gathering => {}
                _ = &mut stopped => {
                    self.send(std::mem::take(&mut spans)).await;
                    return self.send_the_rest().await;
                }
            }
            self.send(std::mem::take(&mut spans)).await;
            if self.is_away {
                // Meanwhile the queue fills, and then drops.
                tokio::time::sleep(2 * PAUSE).await;
            }
        }
    }

    async fn gather(&mut self, spans: &mut Vec<Span>) {
        let enough = async {
            while spans.len() < BATCH {
                if self.finished.recv_many(spans, BATCH - spans.len()).await == 0 {
                    return;
                }
            }
        };
        // Time over: then so many.
        let _ = tokio::time::timeout(GATHER, enough).await;
    }

    async fn send_the_rest(&mut self) {
        let mut spans = Vec::new();
        while let Ok(span) = self.finished.try_recv() {
            spans.push(span);
            if spans.len() == BATCH {
                self.send(std::mem::take(&mut spans)).await;
            }
        }
        if !spans.is_empty() {
            self.send(spans).await;
        }
    }

    async fn send(&mut self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let scope = InstrumentationScope {
            name: "durahub".into(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
            }],
        };
        let tries = if self.is_away { 1 } else { TRIES };
        let mut pause = PAUSE;
        for again in (0..tries).rev() {
            let status = match self.call(request.clone()).await {
                Ok(refused) => {
                    let refused = refused.min(count);
                    self.refused.increment(refused);
                    self.sent.increment(count - refused);
                    if std::mem::take(&mut self.is_away) {
                        tracing::info!(endpoint = self.endpoint, "spans reach the collector again");
                    }
                    return;
                }
                Err(status) => status,
            };
            if again > 0 && is_worth_repeating(&status) {
                tokio::time::sleep(pause).await;
                pause *= 2;
                continue;
            }
            self.unsent.increment(count);
            if !std::mem::replace(&mut self.is_away, true) {
                tracing::warn!(
                    endpoint = self.endpoint,
                    code = ?status.code(),
                    reason = status.message(),
                    "spans do not reach the collector; they are dropped until they do"
                );
            }
            return;
        }
    }

    /// Sends spans. Returns how many of them the collector would not take.
    async fn call(&mut self, message: ExportTraceServiceRequest) -> Result<u64, Status> {
        let mut request = Request::new(message);
        if let Some(path) = self.headers_file.clone() {
            // Read each time: a key may be replaced.
            let read = tokio::task::spawn_blocking(move || read_headers(&path)).await;
            let read = read.map_err(|error| Status::cancelled(error.to_string()))?;
            for (name, value) in read.map_err(Status::invalid_argument)? {
                request.metadata_mut().insert(name, value);
            }
        }
        let answer = tokio::time::timeout(CALL_TIME, self.client.export(request)).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("no answer in time"))??;
        let refused = answer.into_inner().partial_success.unwrap_or_default();
        if refused.rejected_spans > 0 {
            let (count, reason) = (refused.rejected_spans, refused.error_message);
            tracing::debug!(count, reason, "the collector refused spans");
        }
        Ok(u64::try_from(refused.rejected_spans).unwrap_or(0))
    }
}

/// As OTLP says.
fn is_worth_repeating(status: &Status) -> bool {
    use Code::{Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, Unavailable, Unknown};
    let code = status.code();
    // What went wrong on this side of the connection arrives as unknown.
    let listed = [Cancelled, DeadlineExceeded, Aborted, OutOfRange, Unavailable, DataLoss, Unknown];
    listed.contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_line_by_line_and_mistakes_named_without_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headers");
        std::fs::write(&path, "# keys\n\nAuthorization: Bearer a:b\nx-tenant:  one \n").unwrap();
        let read = read_headers(&path).unwrap();
        let read: Vec<_> = read.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(read, [("authorization", "Bearer a:b"), ("x-tenant", "one")]);
        std::fs::write(&path, "ok: yes\n\nsecret\n").unwrap();
        let wrong = read_headers(&path).unwrap_err();
        assert!(wrong.contains("line 3") && !wrong.contains("secret"), "{wrong}");
        assert!(read_headers(&folder.path().join("none")).unwrap_err().contains("cannot be read"));
    }
}
