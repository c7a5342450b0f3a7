//! The keys that sign capability tokens: the first is made on first start, all are
//! kept 0600.

mod change;
mod hsm;
mod list;
mod native;
mod ring;
mod signer;

pub use change::{Place, Revoked, list, revoke, rotate, rotate_if_due};
pub use hsm::Hsm;
pub use list::{AHEAD_S, CACHED_S, Listed, Standing};
pub use native::Native;
pub use ring::KeyRing;
pub use signer::{FileSigner, SIGNATURE, Signer, TokenSigner};

use base64ct::{Base64UrlUnpadded, Encoding};
use jwt_simple::prelude::{
    ECDSAP256KeyPairLike, ES256KeyPair, HeaderOptions, JWTClaims, UnixTimeStamp,
};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
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
    /// The file is not the secret that it should be.
    #[error("the secret `{0}` is damaged; restore it, or remove it to have a new one made")]
    Damaged(PathBuf),
    /// No such key.
    #[error("there is no key `{0}`; `writ keys list` has them")]
    Unknown(String),
    /// It is revoked.
    #[error("the key `{0}` is revoked already")]
    AlreadyRevoked(String),
    /// The list is full.
    #[error("there are {0} keys already; those that are long over go by themselves, a day after")]
    TooMany(usize),
    /// No key may sign.
    #[error("no key signs at this time: all are revoked, or their time has not come")]
    NoneActive,
    /// The PKCS#11 token that holds the keys can't be asked now.
    #[error("the PKCS#11 token can't be used: {0}")]
    TokenAway(String),
    /// The token refused the PIN.
    #[error(
        "the PKCS#11 token refused the PIN of {0}, which is not tried again; once another is there, that is"
    )]
    PinRefused(String),
    /// The PIN can't be read, or others may.
    #[error("{0}")]
    Pin(String),
    /// The module can't be used.
    #[error("the PKCS#11 module `{0}` can't be used: {1}; correct keys.pkcs11.module")]
    Module(PathBuf, String),
    /// The token made a key that may leave it, or may do more than sign.
    #[error(
        "the PKCS#11 token made a key that may leave it or do more than sign; it was removed again"
    )]
    Loose,
    /// The token gave something that is no signature by the key that was asked for.
    #[error("the PKCS#11 token signs wrongly: what it gave does not verify, and was thrown away")]
    WrongSignature,
    /// Signing failed.
    #[error("the token could not be signed")]
    Sign,
}

impl KeyError {
    /// Whether nothing can be signed for now, which passes by itself or with what
    /// people do, and is no defect of ours.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::NoneActive
                | Self::TokenAway(_)
                | Self::PinRefused(_)
                | Self::Pin(_)
                | Self::WrongSignature
        )
    }
}

/// The claims of a capability token that RFC 7519 does not name.
#[derive(Serialize)]
pub struct CapabilityClaims {
    /// The current actor's SPIFFE ID (RFC 9068).
    pub client_id: String,
    /// The actors, the current one outermost, where the subject is another (RFC 8693,
    /// section 4.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<serde_json::Value>,
    /// The user by issuer and subject (RFC 9493), where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_id: Option<serde_json::Value>,
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

/// The `typ` of capability tokens (RFC 9068).
const TYPE: &str = "at+jwt";

/// The ES256 key that signs capability tokens, and nothing else.
pub struct TokenKey(Held);

/// Who holds it.
enum Held {
    File(FileSigner),
    Token(TokenSigner),
}

impl TokenKey {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When it can't be read or made, or others may read it.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        Ok(Self(Held::File(FileSigner::new(es256_file(path)?))))
    }

    /// A key of a PKCS#11 token.
    #[must_use]
    pub fn in_token(signer: TokenSigner) -> Self {
        Self(Held::Token(signer))
    }

    fn signer(&self) -> &dyn Signer {
        match &self.0 {
            Held::File(signer) => signer,
            Held::Token(signer) => signer,
        }
    }

    /// The key's id: its RFC 7638 thumbprint.
    #[must_use]
    pub fn kid(&self) -> &str {
        self.signer().kid()
    }

    /// The public half as a JWK, with `kid`, `use` and `alg`.
    #[must_use]
    pub fn public_jwk(&self) -> serde_json::Value {
        self.signer().public_jwk()
    }

    /// Whether it can sign now, where a token has it.
    ///
    /// # Errors
    /// As [`TokenKey::mint`].
    pub async fn try_out(&self) -> Result<(), KeyError> {
        match &self.0 {
            Held::File(_) => Ok(()),
            Held::Token(signer) => signer.sign(signer::TRIAL).await.map(drop),
        }
    }

    /// Signs a capability token: `typ: at+jwt` (RFC 9068).
    ///
    /// # Errors
    /// One that [may pass](KeyError::may_pass) where a token signs; else
    /// [`KeyError::Sign`], which is ours.
    pub async fn mint(&self, mint: Mint) -> Result<String, KeyError> {
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
        let pair = match &self.0 {
            Held::File(signer) => &signer.pair,
            Held::Token(signer) => return signer::jwt(signer, TYPE, &claims).await,
        };
        let options = HeaderOptions {
            signature_type: Some(TYPE.into()),
            ..HeaderOptions::default()
        };
        pair.sign_with_options(claims, &options)
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

/// The key that a token says it is signed by, unverified.
#[must_use]
pub fn kid(token: &str) -> Option<String> {
    let header = token.split('.').next().and_then(capability::b64::decode)?;
    let header = capability::json::parse(&header, &capability::Limits::CEILING).ok()?;
    Some(header.get("kid")?.as_str()?.to_owned())
}

/// Reads a P-256 key in PEM from `path`, or makes one there with mode 0600.
///
/// # Errors
/// When it can't be read or made, or others may read it.
pub fn es256_file(path: &Path) -> Result<ES256KeyPair, KeyError> {
    let unreadable = || KeyError::Unreadable(path.to_owned());
    let pem = secret_file(path, || {
        let pem = ES256KeyPair::generate().to_pem();
        pem.map(Zeroizing::new).map_err(|_| unreadable())
    })?;
    ES256KeyPair::from_pem(&pem).map_err(|_| unreadable())
}

/// Reads a secret from `path`, or makes one there with mode 0600.
///
/// # Errors
/// When it can't be read or made, or others may read it.
pub fn secret_file(
    path: &Path,
    make: impl FnOnce() -> Result<Zeroizing<String>, KeyError>,
) -> Result<Zeroizing<String>, KeyError> {
    let io = |error| KeyError::File(path.to_owned(), error);
    match File::open(path) {
        Ok(mut file) => {
            let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(KeyError::Mode(path.to_owned(), mode));
            }
            let mut text = Zeroizing::new(String::new());
            file.read_to_string(&mut text).map_err(io)?;
            Ok(text)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = make()?;
            replace(path, text.as_bytes()).map_err(io)?;
            Ok(text)
        }
        Err(error) => Err(io(error)),
    }
}

/// Puts a file in place with mode 0600, whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // Written whole under another name first: a crash leaves no half of it.
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let half = PathBuf::from(name);
    let _ = std::fs::remove_file(&half);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&half)?;
    file.write_all(bytes).and_then(|()| file.sync_all())?;
    std::fs::rename(&half, path)?;
    match path.parent() {
        Some(dir) => File::open(dir).and_then(|dir| dir.sync_all()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
