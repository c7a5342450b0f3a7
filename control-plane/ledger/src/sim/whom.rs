//! For whom callers act, and what of that is stopped. Names decide all of it and no turn of
//! the dice is taken, so that what comes after is what it would be without.

use crate::{
    model::{Target, User},
    sim::asking::Asked,
};

/// Numbers that a name decides.
pub(super) fn dice(name: &str) -> [u8; 32] {
    audit::leaf_hash(name.as_bytes())
}

fn called(subject: &str) -> User {
    User {
        issuer: "https://idp.sim.example".into(),
        subject: subject.into(),
    }
}

/// Half of what is done is done for a user, mostly for the same one.
pub(super) fn user(name: &str) -> Option<User> {
    let dice = dice(&format!("user of {name}"));
    let subject = if dice[1] < 200 { "ann" } else { "ben" };
    (dice[0] < 128).then(|| called(subject))
}

/// Some of what is got with a grant is for another user than that.
pub(super) fn spoil(asked: &mut Asked) {
    let dice = dice(&format!("other user of {}", asked.token.jti));
    if asked.under.is_some() && dice[0] < 20 {
        asked.token.user = match asked.token.user {
            Some(_) => None,
            None => Some(called("ann")),
        };
    } else if dice[0] < 40
        && let Some(next) = &mut asked.next
    {
        next.user = Some(called("cyd"));
    }
}

/// What is stopped of an agent: all of it, what it does for a user, or what all of them do
/// for that one.
pub(super) fn stopped(agent: String, names: u64) -> Target {
    let user = called("ann");
    match dice(&format!("stop {names}"))[0] % 3 {
        0 => Target::Agent(agent),
        1 => Target::Delegation { user, agent },
        _ => Target::User(user),
    }
}
