//! People by name: `server.admins` and `[[approver]]`.

use super::Config;
use super::reader::{Reader, Table};
use std::collections::BTreeSet;

/// Administrators.
const ADMINS_MAX: usize = 64;
/// Letters of a person's or a team's name.
const NAME_MAX: usize = 256;

/// Whether it may be the name of a person or a team.
fn is_name(text: &str) -> bool {
    !text.trim().is_empty()
        && text.chars().count() <= NAME_MAX
        && !text.chars().any(char::is_control)
}

/// `server.admins`; without it, the person of `login_as`.
pub(super) fn admins(server: &Table<'_>, login_as: &str) -> Vec<String> {
    let names = server.texts("admins");
    if !server.has("admins") {
        return vec![login_as.to_owned()];
    }
    if names.is_empty() {
        let message = "nobody could stop, lift or register anything; leave it out for the person of login_as alone";
        server.error("admins", message.into());
    }
    if let Some(name) = names.iter().find(|name| !is_name(name)) {
        let message = format!("`{}` is no name", name.escape_debug());
        server.error("admins", message);
    }
    if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        server.error("admins", "one is named twice".into());
    }
    if names.len() > ADMINS_MAX {
        server.error("admins", format!("more than {ADMINS_MAX}"));
    }
    names
}

pub(super) fn approver(table: &Table<'_>) -> policy::Approver {
    let approver = policy::Approver {
        name: table.text("name"),
        groups: table.texts("groups"),
    };
    table.finish();
    approver
}

impl Config {
    /// Whether this person may stop and lift, and change agents.
    #[must_use]
    pub fn is_admin(&self, who: &str) -> bool {
        self.server.admins.iter().any(|name| name == who)
    }

    /// Whether a sign-in link may be made for this person.
    #[must_use]
    pub fn may_sign_in(&self, who: &str) -> bool {
        self.is_admin(who) || self.is_approver(who)
    }

    fn is_approver(&self, who: &str) -> bool {
        self.approvers.iter().any(|approver| approver.name == who)
    }

    pub(super) fn check_people(&self, reader: &Reader<'_>) {
        let who = &self.server.login_as;
        if !self.is_approver(who) {
            reader.error_at("server.login_as", format!("`{who}` is no [[approver]]"));
        }
    }
}
