//! The keys that sign tokens, as administrators see and change them: the list of
//! `writ keys`, changed by the process that goes by it.

use super::ApprovalDesk;
use crate::keys::{self, KeyError, Listed, Revoked, Standing};
use crate::web::{Desk, DeskError, KeyChange, KeyRefusal, KeyView, KeysChanged};
use ledger::model::Command;
use serde_json::json;

/// A key without its private half.
#[must_use]
pub fn view(key: &Listed, standing: Standing) -> KeyView {
    KeyView {
        kid: key.kid.clone(),
        standing: standing.as_str(),
        from_s: key.from_s,
        revoked_s: key.revoked_s,
        held: if key.object.is_some() {
            "pkcs11"
        } else {
            "file"
        },
    }
}

impl ApprovalDesk {
    pub(super) fn listed_keys(&self) -> Vec<KeyView> {
        let all = self.core.keys.list(self.core.now() / 1000);
        let shown = all.iter().map(|(key, standing)| view(key, *standing));
        shown.collect()
    }

    pub(super) async fn keys_changed(
        &self,
        change: KeyChange,
        by: String,
    ) -> Result<KeysChanged, DeskError> {
        if !self.may_administer(&by) {
            return Err(DeskError::NotAdmin);
        }
        let place = self.core.keys.place().clone();
        let (now_s, wanted) = (self.core.now() / 1000, change.clone());
        // It waits for a lock, and writes; a token is slow.
        let work = tokio::task::spawn_blocking(move || change_in(&place, &wanted, now_s));
        let done = work.await.unwrap_or_else(|error| {
            let away = KeyError::TokenAway(error.to_string());
            Err(refusal(&away))
        });
        let done = done?;
        // What we refuse by it we refuse now, not when the file is looked at next.
        if let Err(error) = self.core.keys.reload() {
            tracing::error!(%error, "the changed list of keys can't be used; the last one stays");
            return Err(DeskError::Key(KeyRefusal::Away, error.to_string()));
        }
        tracing::warn!(
            kid = done.key.kid,
            by,
            "keys that sign tokens were changed: {change:?}"
        );
        self.say_keys(&change, &done, &by).await?;
        Ok(done)
    }

    async fn say_keys(
        &self,
        change: &KeyChange,
        done: &KeysChanged,
        by: &str,
    ) -> Result<(), DeskError> {
        let body = match change {
            KeyChange::Rotate => json!({
                "event": "rotated", "why": "asked", "by": by,
                "kid": done.key.kid, "from_s": done.key.from_s,
            }),
            KeyChange::Revoke { why, .. } => json!({
                "event": "revoked", "why": why, "by": by, "kid": done.key.kid,
                "replaced_by": done.replaced_by.as_ref().map(|it| &it.kid),
            }),
        };
        let kind = "keys";
        match self.core.ledger.commit(Command::Note { kind, body }).await {
            Ok(_) => Ok(()),
            // It is done, whatever the log says: look before it is done again.
            Err(error) => {
                tracing::error!(%error, "keys were changed, and that could not be recorded");
                Err(DeskError::Unknown)
            }
        }
    }
}

/// Changes the list, and says nothing of it anywhere.
///
/// # Errors
/// [`DeskError::Key`].
pub fn change_in(
    place: &keys::Place,
    change: &KeyChange,
    now_s: u64,
) -> Result<KeysChanged, DeskError> {
    let kid = match change {
        KeyChange::Rotate => {
            let made = keys::rotate(place, now_s).map_err(|error| refusal(&error))?;
            return Ok(KeysChanged {
                key: view(&made, Standing::Next),
                replaced_by: None,
                problem: None,
            });
        }
        KeyChange::Revoke { kid, .. } => kid,
    };
    let known = keys::list(place, now_s).map_err(|error| refusal(&error))?;
    let key = known.into_iter().find(|(it, _)| it.kid == *kid);
    let (key, standing) = key.ok_or_else(|| refusal(&KeyError::Unknown(kid.clone())))?;
    // Once it is revoked nothing is refused any more.
    let done = keys::revoke(place, kid, now_s).map_err(|error| refusal(&error))?;
    let revoked = Listed {
        revoked_s: Some(now_s),
        ..key
    };
    let mut changed = KeysChanged {
        key: view(&revoked, Standing::Revoked),
        replaced_by: None,
        problem: None,
    };
    match done {
        // One of before signs again; which, is not known where the list can no longer be read.
        Revoked::Beside if standing == Standing::Active => {
            let left = keys::list(place, now_s).unwrap_or_default();
            let signs = left.iter().find(|(_, it)| *it == Standing::Active);
            changed.replaced_by = signs.map(|(key, it)| view(key, *it));
        }
        Revoked::Beside => {}
        Revoked::Replaced(made) => changed.replaced_by = Some(view(&made, Standing::Active)),
        Revoked::Last(error) => changed.problem = Some(error.to_string()),
    }
    Ok(changed)
}

fn refusal(error: &KeyError) -> DeskError {
    let why = match error {
        KeyError::Unknown(_) => KeyRefusal::Unknown,
        KeyError::AlreadyRevoked(_) => KeyRefusal::Revoked,
        KeyError::TooMany(_) => KeyRefusal::Full,
        _ => KeyRefusal::Away,
    };
    if why == KeyRefusal::Away {
        tracing::error!(%error, "the keys that sign tokens can't be changed");
    }
    DeskError::Key(why, error.to_string())
}
