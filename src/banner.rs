//! The start-up banner: what a person needs next, and a warning when the node is open to others.
//!
//! Pure: addresses and hubs in, text out. The server prints it on a terminal; with JSON logs the same facts
//! are in the `listening` line.

use std::net::{IpAddr, SocketAddr};

/// What the banner tells.
#[derive(Clone, Debug)]
pub struct Banner<'a> {
    /// Where SDK clients and workers connect, as bound.
    pub grpc: SocketAddr,
    /// Where the status page, probes and metrics are, as bound.
    pub http: SocketAddr,
    /// Where other nodes connect, as bound.
    pub peer: SocketAddr,
    /// The hubs that exist; the connection string names the first.
    pub hubs: &'a [String],
    /// Where the data is; `None` when nothing is kept.
    pub data: Option<&'a str>,
}

impl Banner<'_> {
    /// The whole banner, several lines, each ended.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("\nDurahub {} is ready.\n\n", env!("CARGO_PKG_VERSION"));
        text += &format!("  Connect     {}\n", self.connection_string());
        if self.hubs.len() > 1 {
            text += &format!("  Task hubs   {}\n", self.hubs.join(", "));
        }
        text += &format!("  Status      {}\n", url(self.http));
        text += &format!(
            "  Data        {}\n",
            self.data.unwrap_or("in memory, gone at the end (--ephemeral)")
        );
        let endpoint = match self.grpc.port() {
            8080 => String::new(),
            _ => format!(" --endpoint {}", url(self.grpc)),
        };
        text += &format!("  Try         durahub bench sequence{endpoint}\n");
        text += "  Learn       README.md has a Python program that runs against this\n\n";
        if let Some(warning) = self.warning() {
            text += &format!("  WARNING     {warning}\n\n");
        }
        text
    }

    /// A connection string that an SDK program on this machine can use as it is.
    #[must_use]
    pub fn connection_string(&self) -> String {
        let hub = self.hubs.first().map_or("default", String::as_str);
        format!("Endpoint={};TaskHub={hub};Authentication=None", url(self.grpc))
    }

    /// One line for a node that others can reach: nothing asks who they are. `None` on loopback.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let all = [("gRPC", self.grpc), ("HTTP", self.http), ("peer", self.peer)];
        let open: Vec<_> = all
            .iter()
            .filter(|(_, addr)| !addr.ip().to_canonical().is_loopback())
            .map(|(name, addr)| format!("{name} {addr}"))
            .collect();
        (!open.is_empty()).then(|| {
            format!(
                "reachable from other machines without authentication ({}): whoever can connect can read and \
                 change everything; keep it on a private network",
                open.join(", ")
            )
        })
    }
}

/// The address as a URL that works on this machine: wildcards and loopback become `localhost`.
fn url(addr: SocketAddr) -> String {
    let here = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    if here(addr.ip().to_canonical()) {
        format!("http://localhost:{}", addr.port())
    } else {
        format!("http://{addr}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banner<'a>(grpc: &str, hubs: &'a [String]) -> Banner<'a> {
        let addr = |text: &str| text.parse().unwrap();
        let (http, peer) = (addr("127.0.0.1:8082"), addr("127.0.0.1:8083"));
        Banner { grpc: addr(grpc), http, peer, hubs, data: Some("./durahub-data") }
    }

    #[test]
    fn the_default_node_tells_how_to_connect() {
        let hubs = ["default".to_owned()];
        let expected = [
            "",
            concat!("Durahub ", env!("CARGO_PKG_VERSION"), " is ready."),
            "",
            "  Connect     Endpoint=http://localhost:8080;TaskHub=default;Authentication=None",
            "  Status      http://localhost:8082",
            "  Data        ./durahub-data",
            "  Try         durahub bench sequence",
            "  Learn       README.md has a Python program that runs against this",
            "",
            "",
        ];
        assert_eq!(banner("127.0.0.1:8080", &hubs).text(), expected.join("\n"));
    }

    #[test]
    fn another_port_and_several_hubs_are_told() {
        let hubs = ["orders".to_owned(), "default".to_owned()];
        let text = Banner { data: None, ..banner("127.0.0.1:9090", &hubs) }.text();
        for part in [
            "Endpoint=http://localhost:9090;TaskHub=orders;Authentication=None",
            "Task hubs   orders, default",
            "durahub bench sequence --endpoint http://localhost:9090",
            "in memory",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_node_that_others_reach_warns_in_one_line() {
        assert_eq!(banner("[::1]:8080", &[]).warning(), None);
        for open in ["0.0.0.0:8080", "[::]:8080", "10.0.0.7:8080"] {
            let warning = banner(open, &[]).warning().unwrap();
            assert!(
                warning.contains(&format!("(gRPC {open})")) && !warning.contains('\n'),
                "{warning}"
            );
        }
        assert!(
            banner("0.0.0.0:8080", &[])
                .text()
                .contains("Endpoint=http://localhost:8080;TaskHub=default")
        );
        assert!(banner("10.0.0.7:8080", &[]).text().contains("WARNING     reachable"));
    }
}
