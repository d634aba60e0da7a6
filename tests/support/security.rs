//! Certificates, tokens and key sets, made anew for each test.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use durahub::tls::{ClientFiles, ClientTls, Dial, HTTP2};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

/// Signs certificates, and keeps them in a folder.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { issuer: Issuer::new(params, key), pem }
    }

    /// Writes the certificate of the CA.
    pub fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, &self.pem).unwrap();
        path.to_owned()
    }

    /// Makes a certificate for these hosts, with this common name.
    pub fn issue(&self, folder: &Path, file: &str, hosts: &[&str], name: &str) -> Pair {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            cert: folder.join(format!("{file}.pem")),
            key: folder.join(format!("{file}.key")),
        };
        std::fs::write(&pair.cert, signed.pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }
}

/// A channel to a URL, with these files.
pub fn channel(url: &str, ca: Option<&Path>, identity: Option<&Pair>) -> Channel {
    let files = ClientFiles {
        ca: ca.map(Path::to_owned),
        identity: identity.map(|pair| (pair.cert.clone(), pair.key.clone())),
    };
    let dial = Dial(ClientTls::load(&files, HTTP2).unwrap());
    Endpoint::from_shared(url.to_owned()).unwrap().connect_with_connector_lazy(dial)
}

/// Signs JSON Web Tokens.
pub struct Signer {
    pub kid: String,
    key: EcdsaKeyPair,
}

impl Signer {
    pub fn new(kid: &str) -> Signer {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        Signer { kid: kid.to_owned(), key }
    }

    /// The public key, as an entry of a key set.
    pub fn jwk(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "kid": self.kid, "x": x, "y": y })
    }

    /// A token with these claims, on top of those that make it valid.
    pub fn token(&self, claims: &Value) -> String {
        let mut all =
            json!({ "iss": ISSUER, "aud": AUDIENCE, "exp": now() + 600, "sub": "somebody" });
        for (claim, value) in claims.as_object().unwrap() {
            all[claim] = value.clone();
        }
        let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let header = part(json!({ "alg": "ES256", "typ": "JWT", "kid": self.kid }));
        let signed = format!("{header}.{}", part(all));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// Issuer of all tokens.
pub const ISSUER: &str = "https://issuer.test";
/// What they are for.
pub const AUDIENCE: &str = "durahub-test";

/// A key set of these signers.
pub fn key_set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
