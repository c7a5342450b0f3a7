//! `[identity.issuer.users]`: whose users agents may act for.

use super::reader::{Reader, Table};
use super::types::Issuer;
use std::collections::BTreeSet;

/// Clients of one issuer that agents are.
const CLIENTS_MAX: usize = 10_000;
/// Scopes of users' tokens that are taken.
const SCOPES_MAX: usize = 64;

/// The users of an issuer.
#[derive(Clone, Debug)]
pub struct Users {
    /// The `aud` of users' tokens that were made for us.
    pub audience: String,
    /// The issuer's names for agents: the `aud` of users' tokens that one agent got.
    pub clients: Vec<UserClient>,
    /// Whether its identity assertion authorization grants are taken.
    pub id_jag: bool,
    /// What `scope` of those, and of users' tokens, may have; here no scope narrows anything.
    /// None: it is not looked at in users' tokens, and ID-JAGs may not have it.
    pub scopes: Option<Vec<String>>,
    /// The line of the config that names them.
    pub line: usize,
}

/// An agent, as an issuer knows it.
#[derive(Clone, Debug)]
pub struct UserClient {
    /// Its `client_id` there.
    pub client_id: String,
    /// The agent.
    pub agent: String,
    /// The line of the config that names it.
    pub line: usize,
}

impl Users {
    /// Whether this is the issuer's name for an agent.
    #[must_use]
    pub fn is_client(&self, client_id: &str, agent: &str) -> bool {
        let mut all = self.clients.iter();
        all.any(|it| it.client_id == client_id && it.agent == agent)
    }
}

/// Reads them; `None`: nobody may act for its users.
pub(super) fn read(issuer: &Table<'_>) -> Option<Users> {
    if !issuer.has("users") {
        return None;
    }
    let table = issuer.table_or_empty("users");
    let clients = table.tables("client");
    if clients.len() > CLIENTS_MAX {
        table.error("client", format!("more than {CLIENTS_MAX} clients"));
    }
    let scopes = table.texts("scopes");
    if scopes.len() > SCOPES_MAX {
        table.error("scopes", format!("more than {SCOPES_MAX} scopes"));
    }
    let id_jag = table.flag("id_jag", false);
    let audience = table.optional_text("audience");
    if audience.as_deref() == Some("") {
        table.error("audience", "this is empty".into());
    }
    let users = Users {
        audience: audience.unwrap_or_default(),
        clients: clients.iter().map(client).collect(),
        id_jag,
        scopes: table.has("scopes").then_some(scopes),
        line: issuer.line_of("users"),
    };
    table.finish();
    Some(users)
}

fn client(table: &Table<'_>) -> UserClient {
    let client = UserClient {
        client_id: table.text("client_id"),
        agent: table.spiffe_id("agent"),
        line: table.line_of("client_id"),
    };
    table.finish();
    client
}

impl Issuer {
    /// What can be said of its users only beside the rest. `own` is our issuer.
    pub(super) fn check_users(&mut self, own: &str, agents: &BTreeSet<&str>, reader: &Reader) {
        let Some(users) = &mut self.users else {
            return;
        };
        if users.audience.is_empty() {
            own.clone_into(&mut users.audience);
        }
        let mut taken = BTreeSet::from([users.audience.as_str()]);
        // One token must not be taken for an agent's and for a user's.
        if !self.agents.is_empty() && !taken.insert(self.audience.as_str()) {
            let message = "identity.issuer.users.audience: agents' tokens of this issuer have it, so users' need another";
            reader.error(users.line, message.to_owned());
        }
        for client in &users.clients {
            let error = |key: &str, what: String| {
                let message = format!("identity.issuer.users.client.{key}: {what}");
                reader.error(client.line, message);
            };
            if !taken.insert(&client.client_id) {
                let what = "another client, or an audience, has this name";
                error("client_id", what.to_owned());
            }
            let agent = client.agent.as_str();
            if !agent.is_empty() && !agents.contains(agent) {
                error("agent", format!("`{agent}` is no [[agent]]"));
            }
        }
    }
}
