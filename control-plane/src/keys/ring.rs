//! The keys that sign tokens: which one signs now, which are known, which are
//! revoked.
//!
//! All of it follows from one small file and the time, so that replicas with the
//! same directory agree without talking. `writ keys` changes the file, and a
//! control plane that runs looks at it every second.

use super::change::{Place, make};
use super::list::{
    AHEAD_S, FIRST, LIST, Listed, Standing, State, damaged, is_due, lock, parse, read, standings,
    write,
};
use super::{KeyError, TokenKey};
use std::sync::{Arc, PoisonError, RwLock};

/// The keys of a directory, as they are now.
pub struct KeyRing {
    place: Place,
    state: RwLock<Arc<State>>,
}

impl KeyRing {
    /// Opens the keys of `dir`, or makes the first one at this moment.
    ///
    /// # Errors
    /// When they can't be read or made, others may read one, or the list is damaged.
    pub fn open(place: &Place, now_s: u64) -> Result<Self, KeyError> {
        let dir = &place.dir;
        let _lock = lock(dir)?;
        let state = match read(place)? {
            Some(state) => {
                let mut list = state.list.clone();
                if moves(place, &mut list, now_s)? {
                    write(dir, &list)?;
                    read(place)?.ok_or_else(|| damaged(dir))?
                } else {
                    state
                }
            }
            None => {
                let mut first = first(place)?;
                // A clock that steps back must not leave us without a key.
                first.from_s = 0;
                first.made_s = Some(now_s);
                write(dir, &[first])?;
                read(place)?.ok_or_else(|| damaged(dir))?
            }
        };
        Ok(Self {
            place: place.clone(),
            state: RwLock::new(Arc::new(state)),
        })
    }

    /// Looks at the list again. True when it is another; what can't be used
    /// changes nothing.
    ///
    /// # Errors
    /// What is wrong with the new one.
    pub fn reload(&self) -> Result<bool, KeyError> {
        let path = self.place.dir.join(LIST);
        let bytes = std::fs::read(&path).map_err(|error| KeyError::File(path, error))?;
        if bytes == self.state().bytes {
            return Ok(false);
        }
        let state = parse(&self.place, bytes)?;
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

    /// Each key of the list that is gone by, and where it stands.
    #[must_use]
    pub fn list(&self, now_s: u64) -> Vec<(Listed, Standing)> {
        let list = self.state().list.clone();
        let standings = standings(&list, now_s);
        list.into_iter().zip(standings).collect()
    }

    /// Where they are.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether this is one of our keys, and revoked.
    #[must_use]
    pub fn is_revoked(&self, kid: &str) -> bool {
        let state = self.state();
        let mut all = state.list.iter();
        all.any(|key| key.kid == kid && key.revoked_s.is_some())
    }
}

/// The first key: of a directory that had one before there were lists, that one.
fn first(place: &Place) -> Result<Listed, KeyError> {
    if place.token.is_some() {
        return make(place, 0);
    }
    let kid = TokenKey::open(&place.dir.join(FIRST))?.kid().to_owned();
    Ok(Listed {
        kid,
        file: FIRST.to_owned(),
        object: None,
        point: None,
        from_s: 0,
        made_s: None,
        revoked_s: None,
    })
}

/// Another kind of keys is configured than the last one is of: then there is one of
/// that kind, which signs once it is known. At once where the old one can't sign.
fn moves(place: &Place, list: &mut Vec<Listed>, now_s: u64) -> Result<bool, KeyError> {
    let wanted = place.token.is_some();
    let sound = list.iter().filter(|key| key.revoked_s.is_none());
    let last = sound.max_by_key(|key| key.from_s);
    let Some(last) = last.filter(|key| key.object.is_some() != wanted) else {
        return Ok(false);
    };
    let from_s = if last.object.is_some() {
        now_s
    } else {
        now_s.saturating_add(AHEAD_S)
    };
    list.push(make(place, from_s)?);
    Ok(true)
}
