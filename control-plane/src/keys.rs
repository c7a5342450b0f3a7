//! The key that signs capability tokens: made on first start, kept 0600.

use base64ct::{Base64UrlUnpadded, Encoding};
use jwt_simple::prelude::{
    ECDSAP256KeyPairLike, ES256KeyPair, HeaderOptions, JWTClaims, UnixTimeStamp,
};
use serde::Serialize;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Why the signing key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file or its directory can't be read or made.
    #[error("the signing key `{0}`: {1}")]
    File(PathBuf, std::io::Error),
    /// Others may read the file.
    #[error(
        "the signing key `{0}` may be read by others (mode {1:o}); make it 0600 and make sure nobody copied it"
    )]
    Mode(PathBuf, u32),
    /// The file is not a P-256 key in PEM.
    #[error(
        "the signing key `{0}` is not a P-256 private key in PEM; restore it, or remove it to have a new one made"
    )]
    Unreadable(PathBuf),
    /// Signing failed.
    #[error("the token could not be signed")]
    Sign,
}

/// The claims of a capability token that RFC 7519 does not name.
#[derive(Serialize)]
pub struct CapabilityClaims {
    /// The current actor's SPIFFE ID (RFC 9068).
    pub client_id: String,
    /// The task that the action belongs to.
    pub txn: String,
    /// `{"jkt": …}` (RFC 9449, section 6).
    pub cnf: serde_json::Value,
    /// The one action (RFC 9396).
    pub authorization_details: [serde_json::Value; 1],
}

/// What a token is minted from.
pub struct Mint {
    /// `iss`
    pub issuer: String,
    /// `aud`
    pub audience: String,
    /// `sub`
    pub subject: String,
    /// `jti`
    pub id: String,
    /// `iat`, seconds
    pub issued_s: u64,
    /// `exp`, seconds
    pub expires_s: u64,
    /// The rest.
    pub claims: CapabilityClaims,
}

/// The ES256 key that signs capability tokens, and nothing else.
pub struct TokenKey {
    pair: ES256KeyPair,
    kid: String,
}

impl TokenKey {
    /// Opens `dir/token-es256.pem`, or makes it.
    ///
    /// # Errors
    /// When it can't be read or made, or others may read it.
    pub fn open(dir: &Path) -> Result<Self, KeyError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| KeyError::File(dir.to_owned(), error))?;
        let path = dir.join("token-es256.pem");
        let pair = es256_file(&path)?;
        let kid = pair.jwk_thumbprint();
        Ok(Self {
            pair: pair.with_key_id(&kid),
            kid,
        })
    }

    /// The key's id: its RFC 7638 thumbprint.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public half as a JWK, with `kid`, `use` and `alg`.
    #[must_use]
    pub fn public_jwk(&self) -> serde_json::Value {
        public_jwk(&self.pair, &self.kid)
    }

    /// Signs a capability token: `typ: at+jwt` (RFC 9068).
    ///
    /// # Errors
    /// [`KeyError::Sign`], which is ours.
    pub fn mint(&self, mint: Mint) -> Result<String, KeyError> {
        let claims = JWTClaims {
            issued_at: Some(UnixTimeStamp::from_secs(mint.issued_s)),
            expires_at: Some(UnixTimeStamp::from_secs(mint.expires_s)),
            invalid_before: None,
            issuer: Some(mint.issuer),
            subject: Some(mint.subject),
            audiences: Some(jwt_simple::claims::Audiences::AsString(mint.audience)),
            jwt_id: Some(mint.id),
            nonce: None,
            custom: mint.claims,
        };
        let options = HeaderOptions {
            signature_type: Some("at+jwt".into()),
            ..HeaderOptions::default()
        };
        self.pair
            .sign_with_options(claims, &options)
            .map_err(|_| KeyError::Sign)
    }
}

/// The public half of a pair as a JWK, with `kid`, `use` and `alg`.
pub(crate) fn public_jwk(pair: &ES256KeyPair, kid: &str) -> serde_json::Value {
    let point = pair.public_key().public_key_bytes();
    let (x, y) = point.split_at(point.len().min(32));
    serde_json::json!({
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid,
        "x": Base64UrlUnpadded::encode_string(x),
        "y": Base64UrlUnpadded::encode_string(y),
    })
}

trait PublicPoint {
    fn public_key_bytes(&self) -> Vec<u8>;
}

impl PublicPoint for jwt_simple::prelude::ES256PublicKey {
    /// x ‖ y, without the SEC 1 tag.
    fn public_key_bytes(&self) -> Vec<u8> {
        use jwt_simple::prelude::ECDSAP256PublicKeyLike;
        let point = self.public_key().to_bytes_uncompressed();
        point.get(1..).map(<[u8]>::to_vec).unwrap_or_default()
    }
}

/// Reads a P-256 key in PEM from `path`, or makes one there with mode 0600.
///
/// # Errors
/// When it can't be read or made, or others may read it.
pub fn es256_file(path: &Path) -> Result<ES256KeyPair, KeyError> {
    let io = |error| KeyError::File(path.to_owned(), error);
    match File::open(path) {
        Ok(mut file) => {
            let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(KeyError::Mode(path.to_owned(), mode));
            }
            let mut pem = Zeroizing::new(String::new());
            file.read_to_string(&mut pem).map_err(io)?;
            ES256KeyPair::from_pem(&pem).map_err(|_| KeyError::Unreadable(path.to_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let pair = ES256KeyPair::generate();
            let pem = Zeroizing::new(
                pair.to_pem()
                    .map_err(|_| KeyError::Unreadable(path.to_owned()))?,
            );
            // Written whole under another name first: a crash leaves no half key.
            let half = path.with_extension("pem.new");
            let _ = std::fs::remove_file(&half);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&half)
                .map_err(io)?;
            file.write_all(pem.as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(io)?;
            std::fs::rename(&half, path).map_err(io)?;
            if let Some(dir) = path.parent() {
                File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
            }
            Ok(pair)
        }
        Err(error) => Err(io(error)),
    }
}
