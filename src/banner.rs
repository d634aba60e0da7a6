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
    /// How its ports are closed to strangers.
    pub closed: Closed,
}

/// How the ports of a node are closed to strangers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Clients must say who they are.
    pub auth: bool,
    /// The gRPC port speaks TLS.
    pub grpc_tls: bool,
    /// The HTTP port speaks TLS.
    pub http_tls: bool,
    /// Nodes show certificates.
    pub peer_tls: bool,
    /// The certificates of all nodes carry one name.
    pub peer_name: bool,
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
        text += &format!("  Status      {}\n", url(self.http, self.closed.http_tls));
        text += &format!(
            "  Data        {}\n",
            self.data.unwrap_or("in memory, gone at the end (--ephemeral)")
        );
        let endpoint = match self.grpc.port() {
            8080 if !self.closed.grpc_tls => String::new(),
            _ => format!(" --endpoint {}", url(self.grpc, self.closed.grpc_tls)),
        };
        text += &format!("  Try         durahub bench sequence{endpoint}\n");
        text += "  Learn       README.md has a Python program that runs against this\n\n";
        let warnings = self.warning().into_iter();
        for warning in warnings.chain(self.closed.joins_warning().map(str::to_owned)) {
            text += &format!("  WARNING     {warning}\n\n");
        }
        text
    }

    /// A connection string that an SDK program on this machine can use as it is.
    #[must_use]
    pub fn connection_string(&self) -> String {
        let hub = self.hubs.first().map_or("default", String::as_str);
        let endpoint = url(self.grpc, self.closed.grpc_tls);
        let none = if self.closed.auth { "" } else { ";Authentication=None" };
        format!("Endpoint={endpoint};TaskHub={hub}{none}")
    }

    /// One line for a node that others can reach and nothing asks who they are, or what they say can be read
    /// on the way. `None` on loopback.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let Closed { auth, grpc_tls, http_tls, peer_tls, .. } = self.closed;
        let list = |ports: [(bool, &str, SocketAddr); 3]| {
            let open = ports
                .iter()
                .filter(|(closed, _, addr)| !closed && !addr.ip().to_canonical().is_loopback());
            open.map(|(_, name, addr)| format!("{name} {addr}")).collect::<Vec<_>>().join(", ")
        };
        let ports = |grpc, http, peer| {
            list([(grpc, "gRPC", self.grpc), (http, "HTTP", self.http), (peer, "peer", self.peer)])
        };
        let (open, clear) = (ports(auth, auth, peer_tls), ports(grpc_tls, http_tls, peer_tls));
        if !open.is_empty() {
            return Some(format!(
                "reachable from other machines without authentication ({open}): whoever can connect can read and \
                 change everything; set auth.mode and peer_tls, or keep it on a private network"
            ));
        }
        (!clear.is_empty()).then(|| {
            format!(
                "reachable from other machines without TLS ({clear}): tokens and payloads can be read on the way; \
                 set tls.cert_file and peer_tls, or let a proxy in front speak TLS"
            )
        })
    }
}

impl Closed {
    /// One line for a node that takes more certificates for those of nodes than an operator may think.
    #[must_use]
    pub fn joins_warning(&self) -> Option<&'static str> {
        (self.peer_tls && !self.peer_name).then_some(
            "every certificate that peer_tls.ca_file signs may join this cluster as a node, under a host name that is \
             its own: let that CA sign the certificates of nodes only, or set peer_tls.name to a name that only they \
             carry",
        )
    }
}

/// The address as a URL that works on this machine: wildcards and loopback become `localhost`.
fn url(addr: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let here = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    if here(addr.ip().to_canonical()) {
        format!("{scheme}://localhost:{}", addr.port())
    } else {
        format!("{scheme}://{addr}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banner<'a>(grpc: &str, hubs: &'a [String]) -> Banner<'a> {
        let addr = |text: &str| text.parse().unwrap();
        let (http, peer) = (addr("127.0.0.1:8082"), addr("127.0.0.1:8083"));
        let closed = Closed::default();
        Banner { grpc: addr(grpc), http, peer, hubs, data: Some("./durahub-data"), closed }
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
    #[test]
    fn a_closed_node_warns_of_what_is_still_open() {
        let secured =
            Closed { auth: true, grpc_tls: true, http_tls: true, peer_tls: true, peer_name: true };
        let node = |closed| Banner {
            closed,
            peer: "10.0.0.7:8083".parse().unwrap(),
            ..banner("10.0.0.7:8080", &[])
        };
        assert_eq!(node(secured).warning(), None);
        let string = node(secured).connection_string();
        assert_eq!(string, "Endpoint=https://10.0.0.7:8080;TaskHub=default");
        let plain = node(Closed { grpc_tls: false, ..secured }).warning().unwrap();
        assert!(plain.contains("without TLS (gRPC 10.0.0.7:8080)"), "{plain}");
        let peers = node(Closed { peer_tls: false, ..secured }).warning().unwrap();
        assert!(peers.contains("without authentication (peer 10.0.0.7:8083)"), "{peers}");
        assert_eq!(banner("127.0.0.1:8080", &[]).warning(), None);
    }

    #[test]
    fn who_may_join_is_told_where_it_may_be_more_than_nodes() {
        let closed = |peer_tls, peer_name| Closed { peer_tls, peer_name, ..Closed::default() };
        for (closed, told) in
            [(closed(false, false), 0), (closed(true, true), 0), (closed(true, false), 1)]
        {
            let text = Banner { closed, ..banner("127.0.0.1:8080", &[]) }.text();
            assert_eq!(text.matches("may join this cluster").count(), told, "{text}");
        }
    }
}
