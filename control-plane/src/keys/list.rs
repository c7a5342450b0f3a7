//! The list of keys: its file, and where each key of it stands at some moment.

use super::change::Place;
use super::signer::{Point, TokenSigner};
use super::{KeyError, TokenKey, replace};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// The list of keys, in their directory.
pub(super) const LIST: &str = "token-keys.json";
/// The key of a directory that has no list yet.
pub(super) const FIRST: &str = "token-es256.pem";
/// Keys of one list, revoked ones included.
pub(super) const KEYS_MAX: usize = 64;
/// Of these, so many are for what takes the place of revoked ones: no number of
/// rotations may keep anybody from revoking.
pub(super) const KEPT_FOR_REVOKING: usize = 16;
/// A new key is known everywhere for so long before it signs; seconds.
pub const AHEAD_S: u64 = 10;
/// So long may whoever fetched the keys go by them, in seconds. With the second in
/// which a changed list is seen, it fits into [`AHEAD_S`] and leaves the rest for
/// clocks that differ: no cache lacks the key that signs.
pub const CACHED_S: u64 = 5;
/// A key that signs no more is known for so long: no token of it lives longer;
/// seconds.
pub const RETIRED_S: u64 = crate::config::TOKEN_LIFETIME_MAX_S + 60;
/// A key that nobody needs any more stays in the list for so long; seconds.
pub(super) const FORGOTTEN_AFTER_S: u64 = 86_400;

/// One key as the list has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Its RFC 7638 thumbprint.
    pub kid: String,
    /// Its file, in the same directory; empty where a PKCS#11 token has it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Its id in the PKCS#11 token (CKA_ID), hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Its public half, where the private one is in a token that may be away:
    /// base64url of x ‖ y.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<String>,
    /// From when on it signs, in seconds.
    pub from_s: u64,
    /// When it was made, in seconds, where that is not told by `from_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_s: Option<u64>,
    /// When it was revoked, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_s: Option<u64>,
}

/// Where a key stands at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Known, and signs from its time on.
    Next,
    /// It signs.
    Active,
    /// It has signed, and what it has signed may still be shown.
    Retired,
    /// Nothing that it has signed can be good any more.
    Over,
    /// Nothing that it has signed is good.
    Revoked,
}

impl Standing {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Over => "over",
            Self::Revoked => "revoked",
        }
    }

    pub(super) fn is_known(self) -> bool {
        matches!(self, Self::Next | Self::Active | Self::Retired)
    }
}

/// Where each key of a list stands: of those that are not revoked the last whose
/// time has come signs.
pub(super) fn standings(list: &[Listed], now_s: u64) -> Vec<Standing> {
    let sound = || {
        list.iter()
            .enumerate()
            .filter(|(_, key)| key.revoked_s.is_none())
    };
    let begun = sound().filter(|(_, key)| key.from_s <= now_s);
    let active = begun
        .max_by_key(|(at, key)| (key.from_s, *at))
        .map(|(at, _)| at);
    let standing = |(at, key): (usize, &Listed)| {
        if key.revoked_s.is_some() {
            return Standing::Revoked;
        }
        if Some(at) == active {
            return Standing::Active;
        }
        if key.from_s > now_s {
            return Standing::Next;
        }
        // It signed until the first one after it began.
        let after = sound().filter(|(other, it)| (it.from_s, *other) > (key.from_s, at));
        let until_s = after.map(|(_, it)| it.from_s).min().unwrap_or(now_s);
        if until_s.saturating_add(RETIRED_S) > now_s {
            Standing::Retired
        } else {
            Standing::Over
        }
    };
    list.iter().enumerate().map(standing).collect()
}

/// Whether a schedule of one key for each `every_s` wants another at this moment.
/// However long nobody looked, it wants one.
pub(super) fn is_due(list: &[Listed], now_s: u64, every_s: u64) -> bool {
    let standings = standings(list, now_s);
    let all = || list.iter().zip(&standings);
    // One that is to come, here or by another replica. One that is further away than
    // the schedule has a wrong clock's time.
    let soon_s = now_s.saturating_add(every_s);
    if all().any(|(key, standing)| *standing == Standing::Next && key.from_s <= soon_s) {
        return false;
    }
    let mut active = all().filter(|(_, standing)| **standing == Standing::Active);
    active.next().is_some_and(|(key, _)| {
        let made_s = key.made_s.filter(|made_s| *made_s <= now_s);
        let since_s = key.from_s.max(made_s.unwrap_or(0));
        since_s.saturating_add(every_s) <= now_s
    })
}

pub(super) struct State {
    pub bytes: Vec<u8>,
    pub list: Vec<Listed>,
    /// Of each that is not revoked.
    pub keys: Vec<Option<Arc<TokenKey>>>,
}

pub(super) fn damaged(dir: &Path) -> KeyError {
    KeyError::Damaged(dir.join(LIST))
}

pub(super) fn read(place: &Place) -> Result<Option<State>, KeyError> {
    let path = place.dir.join(LIST);
    match std::fs::read(&path) {
        Ok(bytes) => parse(place, bytes).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KeyError::File(path, error)),
    }
}

pub(super) fn parse(place: &Place, bytes: Vec<u8>) -> Result<State, KeyError> {
    let dir = place.dir.as_path();
    let list: Vec<Listed> = serde_json::from_slice(&bytes).map_err(|_| damaged(dir))?;
    let kids: BTreeSet<&str> = list.iter().map(|key| key.kid.as_str()).collect();
    let plain = |file: &str| !file.contains('/') && file.ends_with(".pem");
    let fits = list.iter().all(|key| match &key.object {
        Some(_) => key.file.is_empty() && in_token(place, key).is_some(),
        None => plain(&key.file),
    });
    if list.is_empty() || list.len() > KEYS_MAX || kids.len() != list.len() || !fits {
        return Err(damaged(dir));
    }
    let mut keys = Vec::new();
    for listed in &list {
        if listed.revoked_s.is_some() {
            keys.push(None);
            continue;
        }
        if let Some(key) = in_token(place, listed) {
            keys.push(Some(Arc::new(key)));
            continue;
        }
        let path = dir.join(&listed.file);
        // One that is gone must not be made anew under its old name.
        if !path.exists() {
            return Err(KeyError::Unreadable(path));
        }
        let key = TokenKey::open(&path)?;
        if key.kid() != listed.kid {
            return Err(KeyError::Unreadable(path));
        }
        keys.push(Some(Arc::new(key)));
    }
    Ok(State { bytes, list, keys })
}

/// A key of the token, by what the list says of it; its id binds its public half.
fn in_token(place: &Place, listed: &Listed) -> Option<TokenKey> {
    let signer = TokenSigner {
        id: hex::decode(listed.object.as_ref()?).ok()?,
        point: Point::parse(listed.point.as_ref()?)?,
        kid: listed.kid.clone(),
        hsm: place.token.clone(),
    };
    (signer.point.thumbprint() == signer.kid).then(|| TokenKey::in_token(signer))
}

pub(super) fn write(dir: &Path, list: &[Listed]) -> Result<(), KeyError> {
    let path = dir.join(LIST);
    if list.len() > KEYS_MAX {
        return Err(KeyError::TooMany(KEYS_MAX));
    }
    let text = serde_json::to_string_pretty(list).unwrap_or_default();
    replace(&path, format!("{text}\n").as_bytes()).map_err(|error| KeyError::File(path, error))
}

/// One at a time changes the list.
pub(super) fn lock(dir: &Path) -> Result<File, KeyError> {
    let io = |error| KeyError::File(dir.to_owned(), error);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(io)?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| io(error.into()))?;
    Ok(file)
}
