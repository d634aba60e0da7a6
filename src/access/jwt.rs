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
            used.is_none_or(|used| *used == PublicKeyUse::Signature)
                && !is_secret(key)
                && DecodingKey::from_jwk(key).is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Made once with Python's `cryptography`, so that our reading is held against another library's writing.
    /// The private keys are gone; the tokens end in 2100.
    const VECTORS: &str = include_str!("jwt_vectors.json");

    fn settings() -> JwtSettings {
        JwtSettings {
            keys: KeySource::File("unused".into()),
            issuer: "https://issuer".into(),
            audience: vec!["other-server".into(), "durahub".into()],
            clock_skew: Duration::from_secs(60),
            name_claim: "sub".into(),
        }
    }

    #[test]
    fn tokens_of_another_library_are_judged() {
        verify::install();
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let keys = Keys::parse(VECTORS.as_bytes()).unwrap();
        let tokens = |kind: &str| vectors[kind].as_object().unwrap().clone();
        for (what, token) in tokens("good") {
            let claims = check(token.as_str().unwrap(), &keys, &settings());
            let claims = claims.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!((claims.name.as_str(), claims.ends), ("ci", 4_102_444_860_000_000_000));
        }
        for (what, token) in tokens("bad") {
            assert!(check(token.as_str().unwrap(), &keys, &settings()).is_err(), "{what}");
        }
        assert_eq!((tokens("good").len(), tokens("bad").len()), (10, 13));
    }

    #[test]
    fn a_key_that_is_not_there_is_told_apart() {
        verify::install();
        let mut vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let token = vectors["good"]["ES256"].as_str().unwrap().to_owned();
        vectors["keys"].as_array_mut().unwrap().retain(|key| key["kid"] != "p256");
        let keys = Keys::parse(vectors.to_string().as_bytes()).unwrap();
        assert_eq!(check(&token, &keys, &settings()).err(), Some(Unknown::Key));
    }

    #[test]
    fn a_key_set_needs_a_key_that_checks_signatures() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"keys":[]}"#,
            r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"a"}]}"#,
            r#"{"keys":[{"kty":"RSA","use":"enc","n":"AQAB","e":"AQAB"}]}"#,
            r#"{"keys":[{"kty":"something new"}]}"#,
        ] {
            assert!(Keys::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
