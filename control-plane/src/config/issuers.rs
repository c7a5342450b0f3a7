//! `[[identity.issuer]]`: whose tokens count as evidence beside SVIDs, and for which
//! agents.

use super::reader::{Reader, Table};
use super::types::{Config, Issuer, Mapping};
use identity::oidc::{KeysFrom, check_keys, may_have_keys};

/// Issuers that are believed.
const ISSUERS_MAX: usize = 64;
/// Agents of one issuer.
const AGENTS_MAX: usize = 10_000;

/// Reads them.
pub(super) fn read(identity: &Table<'_>) -> Vec<Issuer> {
    let issuers: Vec<Issuer> = identity.tables("issuer").iter().map(issuer).collect();
    if issuers.len() > ISSUERS_MAX {
        identity.error("issuer", format!("more than {ISSUERS_MAX} issuers"));
    }
    issuers
}

fn issuer(table: &Table<'_>) -> Issuer {
    let name = table.text("issuer");
    let keys = match table.optional_text("keys") {
        None => {
            if !name.is_empty() && !may_have_keys(&name) {
                table.error("issuer", unsafe_url(&name));
            }
            KeysFrom::Discovery
        }
        Some(path) if path.starts_with('/') => KeysFrom::File(path.into()),
        Some(url) => {
            if !may_have_keys(&url) {
                table.error("keys", unsafe_url(&url));
            }
            KeysFrom::Url(url)
        }
    };
    let fetched = !matches!(keys, KeysFrom::File(_));
    for key in ["ca_file", "token_file"] {
        if table.has(key) && !fetched {
            table.error(key, "nothing is fetched where `keys` is a file".into());
        }
    }
    let audience = table.optional_text("audience");
    if audience.as_deref() == Some("") {
        table.error("audience", "this is empty".into());
    }
    let entries = table.tables("agent");
    let users = super::users::read(table);
    if entries.is_empty() && users.is_none() {
        let message = "neither [[identity.issuer.agent]] nor [identity.issuer.users]: nobody would be known by its tokens";
        table.error("issuer", message.into());
    }
    if entries.len() > AGENTS_MAX {
        table.error("agent", format!("more than {AGENTS_MAX} agents"));
    }
    let issuer = Issuer {
        audience: audience.unwrap_or_default(),
        authorities: table.optional_path("ca_file"),
        token_file: table.optional_path("token_file"),
        lifetime_max_s: table.number("lifetime_max_s", 3_600, 60, 86_400),
        agents: entries.iter().map(mapping).collect(),
        users,
        line: table.line_of("issuer"),
        issuer: name,
        keys,
    };
    table.finish();
    issuer
}

fn unsafe_url(url: &str) -> String {
    format!("`{url}` is neither https:// nor an address of this machine (http://127.0.0.1…)")
}

fn mapping(table: &Table<'_>) -> Mapping {
    let claims = table.by_name("claims");
    let names = claims.keys();
    if names.is_empty() {
        let message =
            "without a claim that has to hold, whoever the issuer knows would be this agent";
        table.error("claims", message.into());
    }
    let mapping = Mapping {
        spiffe_id: table.spiffe_id("spiffe_id"),
        line: table.line_of("spiffe_id"),
        claims: names
            .into_iter()
            .map(|name| {
                let value = claims.text(&name);
                (name, value)
            })
            .collect(),
    };
    table.finish();
    mapping
}

impl Config {
    /// Files that issuers name, on this machine.
    pub(super) fn check_issuers_files(&self, reader: &Reader) {
        for issuer in &self.identity.issuers {
            let keys = match &issuer.keys {
                KeysFrom::File(path) => Some(path),
                _ => None,
            };
            let files = [
                ("keys", keys),
                ("ca_file", issuer.authorities.as_ref()),
                ("token_file", issuer.token_file.as_ref()),
            ];
            reader.check_files(issuer.line, "identity.issuer", &files, key_set);
        }
    }

    /// What can be said of issuers only beside the rest.
    pub(super) fn check_issuers(&mut self, reader: &Reader) {
        let own = self.server.issuer.clone();
        let agents: std::collections::BTreeSet<&str> =
            self.agents.iter().map(|it| it.spiffe_id.as_str()).collect();
        let mut names = std::collections::BTreeSet::new();
        for issuer in &mut self.identity.issuers {
            if issuer.audience.is_empty() {
                issuer.audience.clone_from(&own);
            }
            if !names.insert(issuer.issuer.clone()) {
                let message = "identity.issuer.issuer: another issuer has this name".to_owned();
                reader.error(issuer.line, message);
            }
            if issuer.issuer == own {
                let message =
                    "identity.issuer.issuer: this is server.issuer, whose tokens are no evidence";
                reader.error(issuer.line, message.to_owned());
            }
            issuer.check_users(&own, &agents, reader);
            for (at, mapping) in issuer.agents.iter().enumerate() {
                let id = mapping.spiffe_id.as_str();
                if !id.is_empty() && !agents.contains(id) {
                    let message =
                        format!("identity.issuer.agent.spiffe_id: `{id}` is no [[agent]]");
                    reader.error(mapping.line, message);
                }
                let others = issuer.agents.iter().take(at);
                let same = |it: &&Mapping| it.claims == mapping.claims;
                if let Some(other) = others.clone().find(same) {
                    let message = format!(
                        "identity.issuer.agent.claims: `{}` has the same ones",
                        other.spiffe_id
                    );
                    reader.error(mapping.line, message);
                }
            }
        }
    }
}

/// What is wrong with a file of keys.
pub(super) fn key_set(key: &str, bytes: &[u8]) -> Option<String> {
    let wrong = check_keys(bytes).err().filter(|_| key == "keys")?;
    Some(format!("is no JWK set (RFC 7517): {wrong}"))
}
