//! Signatures of JSON Web Tokens, checked by ring: the half of `jsonwebtoken` that it lets others bring.
//!
//! Asymmetric ones only. A set of public keys says nothing about secrets, so `HS256` and its like have no
//! place here, and `none` is not an algorithm.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};
use signature::Verifier;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory: |algorithm, key| match rule(*algorithm) {
        Some(rule) => Ok(Box::new(Check { algorithm: *algorithm, rule, key: key.clone() })),
        None => Err(Error::from(ErrorKind::InvalidAlgorithm)),
    },
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes ring check the signatures of this process.
pub(super) fn install() {
    // A second node in one process finds it installed.
    let _ = PROVIDER.install_default();
}

enum Rule {
    Rsa(&'static RsaParameters),
    Curve(&'static dyn VerificationAlgorithm),
}

fn rule(algorithm: Algorithm) -> Option<Rule> {
    Some(match algorithm {
        Algorithm::RS256 => Rule::Rsa(&RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Rule::Rsa(&RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Rule::Rsa(&RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Rule::Rsa(&RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Rule::Rsa(&RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Rule::Rsa(&RSA_PSS_2048_8192_SHA512),
        Algorithm::ES256 => Rule::Curve(&ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Rule::Curve(&ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDSA => Rule::Curve(&ED25519),
        _ => return None,
    })
}

/// Whether tokens may be signed so.
pub(super) fn is_taken(algorithm: Algorithm) -> bool {
    rule(algorithm).is_some()
}

struct Check {
    algorithm: Algorithm,
    rule: Rule,
    key: DecodingKey,
}

impl Verifier<Vec<u8>> for Check {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let checked = match (&self.rule, self.key.kind()) {
            (Rule::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Rule::Curve(algorithm), DecodingKeyKind::SecretOrDer(point)) => {
                UnparsedPublicKey::new(*algorithm, point).verify(message, signature)
            }
            _ => return Err(signature::Error::new()),
        };
        checked.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Check {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
