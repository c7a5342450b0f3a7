//! The keys that sign tokens: which one signs now, which are known, which are
//! revoked.
//!
//! All of it follows from one small file and the time, so that replicas with the
//! same directory agree without talking. `writ keys` changes the file, and a
//! control plane that runs looks at it every second.

use super::{KeyError, TokenKey, es256_file, replace};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// The list of keys, in their directory.
const LIST: &str = "token-keys.json";
/// The key of a directory that has no list yet.
const FIRST: &str = "token-es256.pem";
/// Keys of one list, revoked ones included.
const KEYS_MAX: usize = 64;
/// A new key is known everywhere for so long before it signs; seconds.
pub const AHEAD_S: u64 = 10;
/// A key that signs no more is known for so long: no token of it lives longer;
/// seconds.
pub const RETIRED_S: u64 = crate::config::TOKEN_LIFETIME_MAX_S + 60;
/// A key that nobody needs any more stays in the list for so long; seconds.
const FORGOTTEN_AFTER_S: u64 = 86_400;

/// One key as the list has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Its RFC 7638 thumbprint.
    pub kid: String,
    /// Its file, in the same directory.
    pub file: String,
    /// From when on it signs, in seconds.
    pub from_s: u64,
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

    fn is_known(self) -> bool {
        matches!(self, Self::Next | Self::Active | Self::Retired)
    }
}

/// Where each key of a list stands: of those that are not revoked the last whose
/// time has come signs.
fn standings(list: &[Listed], now_s: u64) -> Vec<Standing> {
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

/// The keys of a directory, as they are now.
pub struct KeyRing {
    dir: PathBuf,
    state: RwLock<Arc<State>>,
}

struct State {
    bytes: Vec<u8>,
    list: Vec<Listed>,
    /// Of each that is not revoked.
    keys: Vec<Option<Arc<TokenKey>>>,
}

impl KeyRing {
    /// Opens the keys of `dir`, or makes the first one.
    ///
    /// # Errors
    /// When they can't be read or made, others may read one, or the list is damaged.
    pub fn open(dir: &Path) -> Result<Self, KeyError> {
        let _lock = lock(dir)?;
        let state = match read(dir)? {
            Some(state) => state,
            None => {
                let kid = TokenKey::open(&dir.join(FIRST))?.kid().to_owned();
                let first = Listed {
                    kid,
                    file: FIRST.to_owned(),
                    from_s: 0,
                    revoked_s: None,
                };
                write(dir, &[first])?;
                read(dir)?.ok_or_else(|| damaged(dir))?
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            state: RwLock::new(Arc::new(state)),
        })
    }

    /// Looks at the list again. True when it is another; what can't be used
    /// changes nothing.
    ///
    /// # Errors
    /// What is wrong with the new one.
    pub fn reload(&self) -> Result<bool, KeyError> {
        let path = self.dir.join(LIST);
        let bytes = std::fs::read(&path).map_err(|error| KeyError::File(path, error))?;
        if bytes == self.state().bytes {
            return Ok(false);
        }
        let state = parse(&self.dir, bytes)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        Ok(true)
    }

    fn state(&self) -> Arc<State> {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The key that signs at this moment.
    ///
    /// # Errors
    /// [`KeyError::NoneActive`]: all are revoked, or none has begun.
    pub fn active(&self, now_s: u64) -> Result<Arc<TokenKey>, KeyError> {
        let state = self.state();
        let standings = standings(&state.list, now_s);
        let mut all = standings.into_iter().zip(&state.keys);
        let active = all.find(|(standing, _)| *standing == Standing::Active);
        active
            .and_then(|(_, key)| key.clone())
            .ok_or(KeyError::NoneActive)
    }

    /// The public halves of all keys whose tokens may be good at this moment, and
    /// of those that sign next.
    #[must_use]
    pub fn known(&self, now_s: u64) -> Vec<serde_json::Value> {
        let state = self.state();
        let standings = standings(&state.list, now_s);
        let known = standings.into_iter().zip(&state.keys);
        let known = known.filter(|(standing, _)| standing.is_known());
        known
            .filter_map(|(_, key)| key.as_ref().map(|key| key.public_jwk()))
            .collect()
    }

    /// Whether this is one of our keys, and revoked.
    #[must_use]
    pub fn is_revoked(&self, kid: &str) -> bool {
        let state = self.state();
        let mut all = state.list.iter();
        all.any(|key| key.kid == kid && key.revoked_s.is_some())
    }
}

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
    let mut list = read(dir)?.ok_or_else(|| damaged(dir))?.list;
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

fn damaged(dir: &Path) -> KeyError {
    KeyError::Damaged(dir.join(LIST))
}

fn read(dir: &Path) -> Result<Option<State>, KeyError> {
    let path = dir.join(LIST);
    match std::fs::read(&path) {
        Ok(bytes) => parse(dir, bytes).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KeyError::File(path, error)),
    }
}

fn parse(dir: &Path, bytes: Vec<u8>) -> Result<State, KeyError> {
    let list: Vec<Listed> = serde_json::from_slice(&bytes).map_err(|_| damaged(dir))?;
    let kids: BTreeSet<&str> = list.iter().map(|key| key.kid.as_str()).collect();
    let plain = |file: &str| !file.contains('/') && file.ends_with(".pem");
    let fits = list.iter().all(|key| plain(&key.file));
    if list.is_empty() || list.len() > KEYS_MAX || kids.len() != list.len() || !fits {
        return Err(damaged(dir));
    }
    let mut keys = Vec::new();
    for listed in &list {
        if listed.revoked_s.is_some() {
            keys.push(None);
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

fn write(dir: &Path, list: &[Listed]) -> Result<(), KeyError> {
    let path = dir.join(LIST);
    if list.len() > KEYS_MAX {
        return Err(KeyError::TooMany(KEYS_MAX));
    }
    let text = serde_json::to_string_pretty(list).unwrap_or_default();
    replace(&path, format!("{text}\n").as_bytes()).map_err(|error| KeyError::File(path, error))
}

/// One at a time changes the list.
fn lock(dir: &Path) -> Result<File, KeyError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key(kid: &str, from_s: u64, revoked_s: Option<u64>) -> Listed {
        Listed {
            kid: kid.to_owned(),
            file: format!("{kid}.pem"),
            from_s,
            revoked_s,
        }
    }

    #[test]
    fn where_a_key_stands_follows_from_the_list_and_the_time() {
        use Standing::{Active, Next, Over, Retired, Revoked};
        let list = [
            key("a", 0, None),
            key("b", NOW, None),
            key("c", NOW + 50, None),
        ];
        for (at, wanted) in [
            (NOW - 1, [Active, Next, Next]),
            (NOW, [Retired, Active, Next]),
            (NOW + 50, [Retired, Retired, Active]),
            (NOW + RETIRED_S - 1, [Retired, Retired, Active]),
            (NOW + RETIRED_S, [Over, Retired, Active]),
            (NOW + RETIRED_S + 50, [Over, Over, Active]),
        ] {
            assert_eq!(standings(&list, at), wanted, "{at}");
        }
        let list = [
            key("a", 0, None),
            key("b", NOW, Some(NOW + 1)),
            key("c", NOW + 1, None),
        ];
        assert_eq!(standings(&list, NOW + 1), [Retired, Revoked, Active]);
        let list = [key("a", 0, Some(1))];
        assert_eq!(standings(&list, NOW), [Revoked]);
    }

    #[test]
    fn a_rotated_key_is_known_before_it_signs_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::open(dir.path()).unwrap();
        let first = ring.active(NOW).unwrap().kid().to_owned();
        assert_eq!(ring.known(NOW).len(), 1);
        let made = rotate(dir.path(), NOW).unwrap();
        assert!(ring.reload().unwrap());
        assert!(!ring.reload().unwrap());
        assert_eq!(ring.active(NOW).unwrap().kid(), first);
        assert_eq!(ring.known(NOW).len(), 2, "known before it signs");
        let then = NOW + AHEAD_S;
        assert_eq!(ring.active(then).unwrap().kid(), made.kid);
        assert_eq!(ring.known(then).len(), 2, "the old one's tokens are good");
        assert_eq!(ring.known(then + RETIRED_S).len(), 1);
        let again = KeyRing::open(dir.path()).unwrap();
        assert_eq!(again.active(then).unwrap().kid(), made.kid);
    }

    #[test]
    fn a_revoked_key_is_so_for_good_and_another_signs() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::open(dir.path()).unwrap();
        let first = ring.active(NOW).unwrap().kid().to_owned();
        let made = revoke(dir.path(), &first, NOW).unwrap().unwrap();
        assert!(ring.reload().unwrap());
        assert!(ring.is_revoked(&first) && !ring.is_revoked(&made.kid));
        assert_eq!(ring.active(NOW).unwrap().kid(), made.kid);
        assert_eq!(ring.known(NOW).len(), 1);
        assert!(!dir.path().join(FIRST).exists(), "its private half is gone");
        let again = KeyRing::open(dir.path()).unwrap();
        assert!(again.is_revoked(&first));
        for kid in [first.as_str(), "nobody's"] {
            assert!(revoke(dir.path(), kid, NOW).is_err());
        }
        // One that does not sign leaves the one that does.
        let next = rotate(dir.path(), NOW).unwrap();
        assert_eq!(revoke(dir.path(), &next.kid, NOW).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_used_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::open(dir.path()).unwrap();
        let first = ring.active(NOW).unwrap().kid().to_owned();
        let entry = format!(r#"{{"kid":"{first}","file":"{FIRST}","from_s":0}}"#);
        for text in [
            "",
            "[]",
            "{}",
            &format!("[{entry},{entry}]"),
            r#"[{"kid":"x","file":"../a.pem","from_s":0}]"#,
            r#"[{"kid":"x","file":"gone.pem","from_s":0}]"#,
            &format!(r#"[{{"kid":"x","file":"{FIRST}","from_s":0}}]"#),
            &entry.replace("from_s", "from"),
        ] {
            std::fs::write(dir.path().join(LIST), text).unwrap();
            assert!(ring.reload().is_err(), "{text}");
            assert_eq!(ring.active(NOW).unwrap().kid(), first);
        }
        std::fs::write(dir.path().join(LIST), format!("[{entry}]")).unwrap();
        assert!(ring.reload().unwrap());
        std::fs::remove_file(dir.path().join(FIRST)).unwrap();
        std::fs::write(dir.path().join(LIST), format!("[{entry}] ")).unwrap();
        assert!(ring.reload().is_err());
        assert!(!dir.path().join(FIRST).exists(), "it is not made anew");
    }

    #[test]
    fn what_is_long_over_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        KeyRing::open(dir.path()).unwrap();
        rotate(dir.path(), NOW).unwrap();
        let later = NOW + AHEAD_S + RETIRED_S + FORGOTTEN_AFTER_S;
        rotate(dir.path(), later).unwrap();
        let left = list(dir.path(), later).unwrap();
        assert_eq!(left.len(), 2);
        assert!(!dir.path().join(FIRST).exists());
    }
}
