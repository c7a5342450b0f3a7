//! People and teams by name: `server.admins`, `[[approver]]`, `[[owner]]`.

use super::Config;
use super::reader::{Reader, Table};
use std::collections::{BTreeMap, BTreeSet};

/// Administrators.
const ADMINS_MAX: usize = 64;
/// Owners.
const OWNERS_MAX: usize = 4_096;
/// Letters of a person's or a team's name.
const NAME_MAX: usize = 256;
/// Owners that a refusal names.
const TOLD_MAX: usize = 8;

/// A registered agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// The person or team that answers for it.
    pub owner: String,
    /// Whether it may get tokens.
    pub active: bool,
}

/// A person or team that may answer for agents.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its name, by which agents have it.
    pub name: String,
    /// Where to find it, for people.
    pub contact: Option<String>,
}

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

/// Each `[[owner]]`.
pub(super) fn owners(root: &Table<'_>) -> Vec<Owner> {
    let entries = root.tables("owner");
    if entries.len() > OWNERS_MAX {
        root.error("owner", format!("more than {OWNERS_MAX}"));
    }
    let mut seen = BTreeSet::new();
    let owner = |entry: &Table<'_>| {
        let owner = Owner {
            name: entry.text("name"),
            contact: entry.optional_text("contact"),
        };
        if !owner.name.is_empty() && !is_name(&owner.name) {
            entry.error(
                "name",
                format!("`{}` is no name", owner.name.escape_debug()),
            );
        }
        if !seen.insert(owner.name.clone()) {
            entry.error("name", "another owner has this name".into());
        }
        entry.finish();
        owner
    };
    entries.iter().map(owner).collect()
}

/// Says where an agent's owner is none of those that are declared, where any is.
pub(super) fn check_owner(agent: &Table<'_>, owner: &str, declared: &BTreeSet<&str>) {
    if !declared.is_empty() && !owner.is_empty() && !declared.contains(owner) {
        agent.error(
            "owner",
            format!("`{}` is no [[owner]]", owner.escape_debug()),
        );
    }
}

impl Config {
    /// The owners that there are, with where to find them: those that are declared. Where
    /// none is, those that the agents of the config have, and the approvers and their groups.
    #[must_use]
    pub fn known_owners(&self) -> BTreeMap<&str, Option<&str>> {
        if !self.owners.is_empty() {
            let all = self.owners.iter();
            return all
                .map(|it| (it.name.as_str(), it.contact.as_deref()))
                .collect();
        }
        let agents = self.agents.iter().map(|it| &it.owner);
        let approvers = self.approvers.iter();
        let people = approvers.flat_map(|it| it.groups.iter().chain([&it.name]));
        agents.chain(people).map(|it| (it.as_str(), None)).collect()
    }

    /// What there is to say of an owner that there is not.
    #[must_use]
    pub fn told_owners(&self) -> String {
        let known = self.known_owners();
        let mut told: Vec<String> = known
            .keys()
            .take(TOLD_MAX)
            .map(|name| format!("`{}`", name.escape_debug()))
            .collect();
        let more = known.len().saturating_sub(TOLD_MAX);
        if more > 0 {
            told.push(format!("{more} more"));
        }
        let where_to = if self.owners.is_empty() {
            "the agents of the config and its approvers have no other; another is there once an [[approver]], an [[agent]] or an [[owner]] of the config has that name"
        } else {
            "another is there once the config has an [[owner]] of that name"
        };
        let told = told.join(", ");
        format!(
            "there is no such owner: there are {told}; {where_to} and the control plane was started again"
        )
    }

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
