//! The keys that sign tokens: which one signs now, which are known, which are
//! revoked.
//!
//! All of it follows from one small file and the time, so that replicas with the
//! same directory agree without talking. `writ keys` changes the file, and a
//! control plane that runs looks at it every second.

use super::list::{
    FIRST, LIST, Listed, Standing, State, damaged, is_due, lock, parse, read, standings, write,
};
use super::{KeyError, TokenKey};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// The keys of a directory, as they are now.
pub struct KeyRing {
    dir: PathBuf,
    state: RwLock<Arc<State>>,
}

impl KeyRing {
    /// Opens the keys of `dir`, or makes the first one at this moment.
    ///
    /// # Errors
    /// When they can't be read or made, others may read one, or the list is damaged.
    pub fn open(dir: &Path, now_s: u64) -> Result<Self, KeyError> {
        let _lock = lock(dir)?;
        let state = match read(dir)? {
            Some(state) => state,
            None => {
                let kid = TokenKey::open(&dir.join(FIRST))?.kid().to_owned();
                let first = Listed {
                    kid,
                    file: FIRST.to_owned(),
                    // A clock that steps back must not leave us without a key.
                    from_s: 0,
                    made_s: Some(now_s),
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

    /// Whether a schedule of one key for each `every_s` wants another at this
    /// moment, as far as was seen.
    #[must_use]
    pub fn is_due(&self, now_s: u64, every_s: u64) -> bool {
        is_due(&self.state().list, now_s, every_s)
    }

    /// The directory that they are in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether this is one of our keys, and revoked.
    #[must_use]
    pub fn is_revoked(&self, kid: &str) -> bool {
        let state = self.state();
        let mut all = state.list.iter();
        all.any(|key| key.kid == kid && key.revoked_s.is_some())
    }
}
