//! JSON Web Tokens: signed by a key that is known, for this server, by the issuer, and in their time.
//!
//! Keys change while tokens are in use: the issuer publishes the next key, signs with it later, and takes the
//! old one away when no token needs it. A token that names a key that is not known makes the server ask for
//! the keys at once, but not more often than every few seconds, whoever sends such tokens.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::identity::Unknown;
use super::verify;

/// Longest token, in bytes.
const TOKEN_BYTES: usize = 16 << 10;

/// What makes a token valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSettings {
    /// Where the keys are.
    pub keys: KeySource,
    /// Issuer that every token must have.
    pub issuer: String,
    /// Audiences of which every token must have one.
    pub audience: Vec<String>,
    /// How far the issuer's clock may be off.
    pub clock_skew: Duration,
    /// Claim that names the caller.
    pub name_claim: String,
}

/// Where the public keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In a file.
    File(PathBuf),
    /// At a URL.
    Url {
        /// The URL.
        url: String,
        /// PEM file with the certificates that sign that of the URL; `None`: those that the machine trusts.
        ca: Option<PathBuf>,
        /// How often it is asked again.
        refresh: Duration,
    },
}

/// What a valid token says.
pub(super) struct Claims {
    pub(super) name: String,
    pub(super) claims: Map<String, Value>,
    /// Nanoseconds since the epoch at which it ends, clock skew included.
    pub(super) ends: i64,
}

/// A set of public keys.
#[derive(Clone, Debug)]
pub(super) struct Keys(JwkSet);

impl Keys {
    /// Reads a key set. Keys for encryption and keys that nobody here can use are left out.
    pub(super) fn parse(text: &[u8]) -> Result<Keys, String> {
        let set: Value =
            serde_json::from_slice(text).map_err(|error| format!("is not JSON: {error}"))?;
        let Some(entries) = set.get("keys").and_then(Value::as_array) else {
            return Err("is not a JSON Web Key Set: it has no list `keys`".into());
        };
        let keys =
            entries.iter().filter_map(|entry| serde_json::from_value::<Jwk>(entry.clone()).ok());
        let signs = |key: &Jwk| {
            let used = key.common.public_key_use.as_ref();
            used.is_none_or(|used| *used == PublicKeyUse::Signature) && !is_secret(key)
        };
        let keys: Vec<Jwk> = keys.filter(signs).collect();
        if keys.is_empty() {
            return Err("holds no public key that can check a signature".into());
        }
        Ok(Keys(JwkSet { keys }))
    }

    /// Those that a token may have been signed with: the one that it names, or all when it names none.
    fn named<'k>(&'k self, name: Option<&'k str>) -> impl Iterator<Item = &'k Jwk> {
        self.0.keys.iter().filter(move |key| match name {
            Some(name) => key.common.key_id.as_deref() == Some(name),
            None => true,
        })
    }
}

fn is_secret(key: &Jwk) -> bool {
    matches!(key.algorithm, jsonwebtoken::jwk::AlgorithmParameters::OctetKey(_))
}

/// Says what a token says, if it is valid.
pub(super) fn check(token: &str, keys: &Keys, settings: &JwtSettings) -> Result<Claims, Unknown> {
    let wrong = |text: &str| Unknown::Wrong(text.to_owned());
    if token.len() > TOKEN_BYTES {
        return Err(wrong("the token is too long"));
    }
    let header =
        decode_header(token).map_err(|_| wrong("the token is no signed JSON Web Token"))?;
    if !verify::is_taken(header.alg) {
        return Err(wrong("the token is signed in a way that is not taken here"));
    }
    let mut validation = Validation::new(header.alg);
    validation.leeway = settings.clock_skew.as_secs();
    validation.validate_nbf = true;
    validation.set_issuer(&[&settings.issuer]);
    validation.set_audience(&settings.audience);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    let mut last = Unknown::Key;
    for key in keys.named(header.kid.as_deref()) {
        // A key may say what it is for; the library spells the two alike.
        let named = key.common.key_algorithm.map(|algorithm| format!("{algorithm:?}"));
        let fits = named.is_none_or(|named| named == format!("{:?}", header.alg));
        let Some(decoding) = DecodingKey::from_jwk(key).ok().filter(|_| fits) else { continue };
        match decode::<Map<String, Value>>(token, &decoding, &validation) {
            Ok(data) => return claims(data.claims, settings),
            Err(error) => last = wrong(reason(error.kind())),
        }
    }
    Err(last)
}

fn claims(claims: Map<String, Value>, settings: &JwtSettings) -> Result<Claims, Unknown> {
    let name = claims.get(&settings.name_claim).and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        let text = format!("the token has no claim {} that names its holder", settings.name_claim);
        return Err(Unknown::Wrong(text));
    }
    let name = name.to_owned();
    let ends = claims.get("exp").and_then(Value::as_f64).unwrap_or_default()
        + settings.clock_skew.as_secs_f64();
    // Far ends are as good as none.
    let ends = (ends.min(9.0e9) * 1e9) as i64;
    Ok(Claims { name, claims, ends })
}

fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token is from another issuer",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks one of the claims exp, iss and aud",
        ErrorKind::InvalidSignature => "the signature of the token is wrong",
        _ => "the token is no valid JSON Web Token",
    }
}
