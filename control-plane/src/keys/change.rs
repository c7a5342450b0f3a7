//! What changes the list of keys: another key, made on demand or on schedule, and
//! one that is revoked.

use super::list::{
    AHEAD_S, FORGOTTEN_AFTER_S, KEPT_FOR_REVOKING, KEYS_MAX, Listed, Standing, damaged, is_due,
    lock, read, standings, write,
};
use super::{Hsm, KeyError, TokenKey};
use crate::config::Config;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the list is, and who holds what it names.
#[derive(Clone)]
pub struct Place {
    /// The directory of the list, and of keys in files.
    pub dir: PathBuf,
    /// The PKCS#11 token that new keys are made in.
    pub token: Option<Arc<Hsm>>,
}

impl Place {
    /// Keys in files.
    #[must_use]
    pub fn files(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            token: None,
        }
    }

    /// Where the config says. Waits for a token.
    ///
    /// # Errors
    /// As [`Hsm::open`].
    pub fn of(config: &Config) -> Result<Self, KeyError> {
        let token = config.keys.pkcs11.as_ref().map(Hsm::open).transpose()?;
        Ok(Self {
            dir: config.server.data_dir.join("keys"),
            token: token.map(Arc::new),
        })
    }

    /// As [`Place::of`], where a token that can't be opened is no error: revoking does
    /// without.
    #[must_use]
    pub fn at_any_rate(config: &Config) -> Self {
        Self::of(config).unwrap_or_else(|error| Self {
            dir: config.server.data_dir.join("keys"),
            token: Some(Arc::new(Hsm::never(&error))),
        })
    }
}

/// Each key of `dir` and where it stands, for people.
///
/// # Errors
/// When there is no list, or it can't be read.
pub fn list(place: &Place, now_s: u64) -> Result<Vec<(Listed, Standing)>, KeyError> {
    let state = read(place)?.ok_or_else(|| damaged(&place.dir))?;
    let standings = standings(&state.list, now_s);
    Ok(state.list.into_iter().zip(standings).collect())
}

/// Makes a key that signs in [`AHEAD_S`].
///
/// # Errors
/// When there is no list, there are too many keys, or a file can't be written.
pub fn rotate(place: &Place, now_s: u64) -> Result<Listed, KeyError> {
    let _lock = lock(&place.dir)?;
    let list = read(place)?.ok_or_else(|| damaged(&place.dir))?.list;
    rotate_locked(place, list, now_s)
}

/// As [`rotate`], when the last rotation is `every_s` ago: by the list as it stands
/// now, so that of several replicas with the same directory one does it. `None`: it
/// is not yet time.
///
/// # Errors
/// As [`rotate`].
pub fn rotate_if_due(place: &Place, now_s: u64, every_s: u64) -> Result<Option<Listed>, KeyError> {
    let _lock = lock(&place.dir)?;
    let list = read(place)?.ok_or_else(|| damaged(&place.dir))?.list;
    if !is_due(&list, now_s, every_s) {
        return Ok(None);
    }
    rotate_locked(place, list, now_s).map(Some)
}

fn rotate_locked(place: &Place, mut list: Vec<Listed>, now_s: u64) -> Result<Listed, KeyError> {
    forget(place, &mut list, now_s);
    let most = KEYS_MAX - KEPT_FOR_REVOKING;
    if list.len() >= most {
        return Err(KeyError::TooMany(list.len()));
    }
    let made = make(place, now_s.saturating_add(AHEAD_S))?;
    list.push(made.clone());
    write(&place.dir, &list)?;
    Ok(made)
}

/// What became of a key that is revoked.
#[derive(Debug)]
pub enum Revoked {
    /// It did not sign.
    Beside,
    /// It was the one that signs; now this one does.
    Replaced(Listed),
    /// It was the one that signs, and none could be made in its place.
    Last(KeyError),
}

/// Revokes a key for good. When it is the one that signs, another signs from now on.
///
/// # Errors
/// When there is no such key, it is revoked already, or the list can't be written.
pub fn revoke(place: &Place, kid: &str, now_s: u64) -> Result<Revoked, KeyError> {
    let _lock = lock(&place.dir)?;
    let mut list = read(place)?.ok_or_else(|| damaged(&place.dir))?.list;
    let found = list.iter_mut().find(|key| key.kid == kid);
    let key = found.ok_or_else(|| KeyError::Unknown(kid.to_owned()))?;
    if key.revoked_s.is_some() {
        return Err(KeyError::AlreadyRevoked(kid.to_owned()));
    }
    key.revoked_s = Some(now_s);
    let gone = key.clone();
    let signs = standings(&list, now_s).contains(&Standing::Active);
    // A token that is away keeps nobody from revoking: then nothing signs.
    let done = match signs {
        true => Revoked::Beside,
        false if list.len() >= KEYS_MAX => Revoked::Last(KeyError::TooMany(list.len())),
        false => make(place, now_s).map_or_else(Revoked::Last, Revoked::Replaced),
    };
    if let Revoked::Replaced(made) = &done {
        list.push(made.clone());
    }
    write(&place.dir, &list)?;
    // The list says what counts; a private key that may be known has no use.
    remove(place, &gone);
    Ok(done)
}

/// A key of the kind that is configured.
pub(super) fn make(place: &Place, from_s: u64) -> Result<Listed, KeyError> {
    let listed = |kid, file| Listed {
        kid,
        file,
        object: None,
        point: None,
        from_s,
        made_s: None,
        revoked_s: None,
    };
    let Some(token) = &place.token else {
        let name = crate::state::random_id::<8>("token-es256-");
        let file = format!("{name}.pem");
        let key = TokenKey::open(&place.dir.join(&file))?;
        return Ok(listed(key.kid().to_owned(), file));
    };
    let id: [u8; 16] = rand::random();
    let point = token.make(&id)?;
    Ok(Listed {
        object: Some(hex::encode(id)),
        point: Some(point.text()),
        ..listed(point.thumbprint(), String::new())
    })
}

/// Removes a private key, as far as it can be reached.
fn remove(place: &Place, key: &Listed) {
    let Some(object) = &key.object else {
        let _gone = std::fs::remove_file(place.dir.join(&key.file));
        return;
    };
    let id = hex::decode(object).unwrap_or_default();
    let gone = match &place.token {
        Some(token) => token.destroy(&id),
        None => Err(KeyError::TokenAway("none is configured".to_owned())),
    };
    if let Err(error) = gone {
        tracing::error!(kid = key.kid, object, %error, "its object is left in the token; remove it there");
    }
}

/// Leaves out what has been over, or revoked, for a day.
fn forget(place: &Place, list: &mut Vec<Listed>, now_s: u64) {
    let before_s = now_s.saturating_sub(FORGOTTEN_AFTER_S);
    let then = standings(list, before_s);
    let now = standings(list, now_s);
    let mut at = 0;
    list.retain(|key| {
        let over = |all: &[Standing]| all.get(at) == Some(&Standing::Over);
        let revoked = key.revoked_s.is_some_and(|at| at < before_s);
        let gone = revoked || (over(&then) && over(&now));
        at = at.saturating_add(1);
        if gone {
            remove(place, key);
        }
        !gone
    });
}
