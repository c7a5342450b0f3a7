//! What changes the list of keys: another key, made on demand or on schedule, and
//! one that is revoked.

use super::list::{
    AHEAD_S, FORGOTTEN_AFTER_S, Listed, Standing, damaged, is_due, lock, read, standings, write,
};
use super::{KeyError, TokenKey, es256_file};
use std::path::Path;

/// Each key of `dir` and where it stands, for people.
///
/// # Errors
/// When there is no list, or it can't be read.
pub fn list(dir: &Path, now_s: u64) -> Result<Vec<(Listed, Standing)>, KeyError> {
    let state = read(dir)?.ok_or_else(|| damaged(dir))?;
    let standings = standings(&state.list, now_s);
    Ok(state.list.into_iter().zip(standings).collect())
}

/// Makes a key that signs in [`AHEAD_S`].
///
/// # Errors
/// When there is no list, there are too many keys, or a file can't be written.
pub fn rotate(dir: &Path, now_s: u64) -> Result<Listed, KeyError> {
    let _lock = lock(dir)?;
    let list = read(dir)?.ok_or_else(|| damaged(dir))?.list;
    rotate_locked(dir, list, now_s)
}

/// As [`rotate`], when the last rotation is `every_s` ago: by the list as it stands
/// now, so that of several replicas with the same directory one does it. `None`: it
/// is not yet time.
///
/// # Errors
/// As [`rotate`].
pub fn rotate_if_due(dir: &Path, now_s: u64, every_s: u64) -> Result<Option<Listed>, KeyError> {
    let _lock = lock(dir)?;
    let list = read(dir)?.ok_or_else(|| damaged(dir))?.list;
    if !is_due(&list, now_s, every_s) {
        return Ok(None);
    }
    rotate_locked(dir, list, now_s).map(Some)
}

fn rotate_locked(dir: &Path, mut list: Vec<Listed>, now_s: u64) -> Result<Listed, KeyError> {
    forget(dir, &mut list, now_s);
    let made = make(dir, now_s.saturating_add(AHEAD_S))?;
    list.push(made.clone());
    write(dir, &list)?;
    Ok(made)
}

/// Revokes a key for good. When it is the one that signs, another signs from now
/// on, which is returned.
///
/// # Errors
/// When there is no such key, it is revoked already, or a file can't be written.
pub fn revoke(dir: &Path, kid: &str, now_s: u64) -> Result<Option<Listed>, KeyError> {
    let _lock = lock(dir)?;
    let mut list = read(dir)?.ok_or_else(|| damaged(dir))?.list;
    let found = list.iter_mut().find(|key| key.kid == kid);
    let key = found.ok_or_else(|| KeyError::Unknown(kid.to_owned()))?;
    if key.revoked_s.is_some() {
        return Err(KeyError::AlreadyRevoked(kid.to_owned()));
    }
    key.revoked_s = Some(now_s);
    let file = dir.join(&key.file);
    let signs = standings(&list, now_s).contains(&Standing::Active);
    let made = if signs { None } else { Some(make(dir, now_s)?) };
    list.extend(made.clone());
    write(dir, &list)?;
    // The list says what counts; a private key that may be known has no use.
    let _gone = std::fs::remove_file(file);
    Ok(made)
}

fn make(dir: &Path, from_s: u64) -> Result<Listed, KeyError> {
    let name = crate::state::random_id::<8>("token-es256-");
    let file = format!("{name}.pem");
    let path = dir.join(&file);
    es256_file(&path)?;
    let kid = TokenKey::open(&path)?.kid().to_owned();
    Ok(Listed {
        kid,
        file,
        from_s,
        made_s: None,
        revoked_s: None,
    })
}

/// Leaves out what has been over, or revoked, for a day.
fn forget(dir: &Path, list: &mut Vec<Listed>, now_s: u64) {
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
            let _gone = std::fs::remove_file(dir.join(&key.file));
        }
        !gone
    });
}
