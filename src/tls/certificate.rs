//! The names in a certificate that somebody showed, and that was found to be signed as it must be.

use durahub_cluster::transport::Shown;
use rustls_pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

/// A certificate whose signature has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: CertificateDer<'static>,
    names: Vec<String>,
}

impl Certificate {
    /// Reads the names of a certificate. One that cannot be read has none.
    pub(super) fn new(der: &CertificateDer<'_>) -> Certificate {
        let names = EndEntityCert::try_from(der).map(|certificate| {
            let uris = certificate.valid_uri_names().map(str::to_owned);
            let hosts = certificate.valid_dns_names().map(str::to_owned);
            uris.chain(hosts).chain(common_name(certificate.subject())).collect()
        });
        Certificate { der: der.clone().into_owned(), names: names.unwrap_or_default() }
    }

    /// Its names: first the URIs (a SPIFFE id is one), then the hosts, then the common name.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl Shown for Certificate {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn is_for(&self, host: &str) -> bool {
        let Ok(certificate) = EndEntityCert::try_from(&self.der) else { return false };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host);
        name.is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    }
}

/// The common name (2.5.4.3) in a subject: a list of sets of pairs of a type and a text, in DER.
fn common_name(subject: &[u8]) -> Option<String> {
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const TYPE: u8 = 0x06;
    const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
    // UTF8String, PrintableString, IA5String.
    const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
    let mut sets = subject;
    while let Some((SET, set, rest)) = value(sets) {
        sets = rest;
        let Some((SEQUENCE, pair, _)) = value(set) else { continue };
        let Some((TYPE, kind, text)) = value(pair) else { continue };
        let Some((tag, text, _)) = value(text) else { continue };
        if kind == COMMON_NAME && TEXTS.contains(&tag) {
            return String::from_utf8(text.to_vec()).ok().filter(|name| !name.is_empty());
        }
    }
    None
}

/// The first DER value: its tag, what it holds, and what stands behind it.
fn value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    Some((tag, rest.get(..length)?, rest.get(length..)?))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn names_are_uris_then_hosts_then_the_common_name() {
        let mut params =
            CertificateParams::new(vec!["a.example".into(), "10.0.0.7".into()]).unwrap();
        let uri = "spiffe://corp/worker".try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name.push(DnType::OrganizationName, "corp");
        params.distinguished_name.push(DnType::CommonName, "x".repeat(200));
        let shown = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let certificate = Certificate::new(shown.der());
        assert_eq!(
            certificate.names(),
            ["spiffe://corp/worker".to_owned(), "a.example".to_owned(), "x".repeat(200)]
        );
        for (host, is) in
            [("a.example", true), ("10.0.0.7", true), ("b.example", false), ("10.0.0.8", false)]
        {
            assert_eq!(certificate.is_for(host), is, "{host}");
        }
        let broken = Certificate::new(&CertificateDer::from(vec![1, 2, 3]));
        assert!(broken.names().is_empty() && !broken.is_for("a.example"));
    }
}
