//! JWT-SVIDs that were made already, so that a caller who asks again gets the
//! same one until half of its life has passed, as from SPIRE's agent.
//!
//! What counts by the SVID (DPoP keys that one was shown under) would count
//! nothing if everybody could have a new one at any time. So a full cache
//! refuses: it neither forgets an SVID early nor hands out one beside it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use crate::{Millis, SpiffeId};

/// Sets of audiences that one caller may have SVIDs for at one time.
const MAX_AUDIENCE_SETS: usize = 64;

/// Whose SVIDs they are: the kernel's uid, and one of its identities.
type Owner = (u32, SpiffeId);

/// The SVIDs, the oldest first.
#[derive(Default)]
pub(crate) struct JwtCache {
    kept: Mutex<HashMap<Owner, VecDeque<Kept>>>,
}

struct Kept {
    audience: [u8; 32],
    from: Millis,
    until: Millis,
    token: String,
}

/// The caller has SVIDs for too many audiences.
#[derive(Debug, thiserror::Error)]
#[error(
    "this caller has JWT-SVIDs for 64 sets of audiences: use those, or wait until half of their life has passed"
)]
pub(crate) struct Full;

impl JwtCache {
    /// The SVID of before, or one that `make` makes, which is kept for `keep`
    /// milliseconds.
    pub(crate) fn get<E: From<Full>>(
        &self,
        (uid, id): (u32, &SpiffeId),
        audience: &[String],
        now: Millis,
        keep: Millis,
        make: impl FnOnce() -> Result<String, E>,
    ) -> Result<String, E> {
        let audience = digest(audience);
        // Held while one is made: two who ask at once get the same.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let owned = kept.entry((uid, id.clone())).or_default();
        // One from the future is of a clock that was set back since.
        owned.retain(|one| one.from <= now && now < one.until);
        if let Some(one) = owned.iter().find(|one| one.audience == audience) {
            return Ok(one.token.clone());
        }
        if owned.len() >= MAX_AUDIENCE_SETS {
            return Err(Full.into());
        }
        let token = make()?;
        owned.push_back(Kept {
            audience,
            from: now,
            until: now.saturating_add(keep),
            token: token.clone(),
        });
        Ok(token)
    }
}

/// The audiences as a set; each has its length before it.
fn digest(audience: &[String]) -> [u8; 32] {
    let mut audience: Vec<&str> = audience.iter().map(String::as_str).collect();
    audience.sort_unstable();
    let mut hash = Sha256::new();
    for one in audience {
        hash.update(format!("{}:{one}", one.len()));
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://writ.example/{path}")).unwrap()
    }

    fn get(cache: &JwtCache, uid: u32, path: &str, audience: &[&str], now: Millis) -> String {
        let audience: Vec<String> = audience.iter().map(|one| (*one).to_owned()).collect();
        let make = || Ok::<_, Full>(format!("{uid} {path} {now}"));
        let owner = (uid, &id(path));
        cache.get(owner, &audience, now, 500, make).unwrap()
    }

    #[test]
    fn the_same_caller_gets_the_same_one_until_it_is_due() {
        let cache = JwtCache::default();
        let first = get(&cache, 7, "a", &["x", "y"], 1000);
        assert_eq!(get(&cache, 7, "a", &["y", "x"], 1499), first);
        assert_eq!(get(&cache, 7, "a", &["xy"], 1001), "7 a 1001");
        assert_eq!(get(&cache, 8, "a", &["x", "y"], 1002), "8 a 1002");
        assert_eq!(get(&cache, 7, "b", &["x", "y"], 1003), "7 b 1003");
        assert_eq!(get(&cache, 7, "a", &["x", "y"], 1500), "7 a 1500");
        assert_eq!(get(&cache, 7, "a", &["x", "y"], 900), "7 a 900");
    }

    #[test]
    fn a_crowd_of_audiences_brings_no_new_svid_for_the_first() {
        let cache = JwtCache::default();
        let first = get(&cache, 7, "a", &["issuer"], 1000);
        for at in 1..MAX_AUDIENCE_SETS {
            get(&cache, 7, "a", &[&at.to_string()], 1001);
        }
        let more = cache.get((7, &id("a")), &["more".to_owned()], 1002, 500, || {
            Ok::<_, Full>(String::new())
        });
        assert!(more.is_err());
        assert_eq!(get(&cache, 7, "a", &["issuer"], 1002), first);
        assert_eq!(get(&cache, 8, "a", &["more"], 1002), "8 a 1002");
        assert_eq!(get(&cache, 7, "a", &["more"], 1501), "7 a 1501");
    }
}
