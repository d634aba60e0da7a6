//! PLACEHOLDER, replaced by the lead: binds all ports, serves the HTTP port until shutdown, schedules nothing.
//!
//! It keeps the promises of the program shell, so that `tests/program.rs` holds before and after: ports are
//! bound before the data folder is touched, `listening` tells the bound addresses, a signal drains.

use std::future::Future;
use std::io::Write;

use anyhow::Context;
use tokio::sync::oneshot;

use crate::banner::Banner;
use crate::config::Config;
use crate::health::Health;
use crate::http::{self, Node};
use crate::listen::bind;
use crate::panics;
use crate::telemetry::metrics::Metrics;

/// Runs a node until `shutdown` ends and the drain is over.
///
/// # Errors
/// When a port or the data folder cannot be taken.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let grpc = bind("grpc-addr", config.grpc_addr).await?;
    let http = bind("http-addr", config.http_addr).await?;
    let peer = bind("peer-addr", config.peer_addr).await?;
    let data = config.data_dir.display().to_string();
    if !config.ephemeral {
        std::fs::create_dir_all(&config.data_dir)
            .with_context(|| format!("create the data folder {data}"))?;
    }

    let (grpc, http_addr, peer) = (grpc.local_addr()?, http.local_addr()?, peer.local_addr()?);
    let metrics = Metrics::install()?;
    let health = Health::new(&["storage"]);
    let node = Node { health: health.clone(), metrics: metrics.clone(), grpc };
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(http::serve(http, http::router(node), metrics, async {
        stopped.await.unwrap_or(())
    }));

    let banner = Banner {
        grpc,
        http: http_addr,
        peer,
        hubs: &config.task_hubs,
        data: (!config.ephemeral).then_some(&data),
    };
    if let Some(warning) = banner.warning() {
        tracing::warn!("{warning}");
    }
    // A closed standard output is no reason not to serve.
    let _ = std::io::stdout().write_all(banner.text().as_bytes());
    health.pass("storage");
    panics::abort_from_now_on();
    tracing::info!(%grpc, http = %http_addr, %peer, connect = banner.connection_string(), "listening");

    shutdown.await;
    health.drain();
    let _ = stop.send(());
    serving.await??;
    Ok(())
}
