//! `[[client]]`: clients that are no SPIFFE workloads, by their own keys.

use super::reader::{Reader, Table};
use super::types::Config;
use identity::oidc::{KeysFrom, may_have_keys};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Clients.
const CLIENTS_MAX: usize = 1_024;
/// Bytes of a client's name.
const CLIENT_ID_MAX: usize = 256;

/// A client that is no SPIFFE workload.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its name: `iss` and `sub` of its assertions.
    pub client_id: String,
    /// The agent that it is.
    pub agent: String,
    /// Where its keys are.
    pub keys: KeysFrom,
    /// PEM of the authorities for the TLS certificate of where they are.
    pub authorities: Option<PathBuf>,
    /// Seconds for which it may go on by refresh tokens; 0: not at all.
    pub refresh_s: u64,
    /// The line of the config that names it.
    pub line: usize,
}

/// Reads them.
pub(super) fn read(root: &Table<'_>) -> Vec<Client> {
    let clients: Vec<Client> = root.tables("client").iter().map(client).collect();
    if clients.len() > CLIENTS_MAX {
        root.error("client", format!("more than {CLIENTS_MAX} clients"));
    }
    clients
}

fn client(table: &Table<'_>) -> Client {
    let name = table.text("client_id");
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain || name.len() > CLIENT_ID_MAX {
        let message = format!("this is not 1 to {CLIENT_ID_MAX} printable ASCII letters");
        table.error("client_id", message);
    }
    if name.starts_with("spiffe://") {
        let message = "a workload shows its SVID; give a client another name".to_owned();
        table.error("client_id", message);
    }
    let keys = match table.text("keys") {
        path if path.starts_with('/') => KeysFrom::File(path.into()),
        url => {
            if !url.is_empty() && !may_have_keys(&url) {
                table.error("keys", format!("`{url}` is neither https:// nor an address of this machine (http://127.0.0.1…), nor a file's path"));
            }
            KeysFrom::Url(url)
        }
    };
    if table.has("ca_file") && matches!(keys, KeysFrom::File(_)) {
        table.error(
            "ca_file",
            "nothing is fetched where `keys` is a file".into(),
        );
    }
    let client = Client {
        agent: table.spiffe_id("agent"),
        authorities: table.optional_path("ca_file"),
        refresh_s: table.number("refresh_s", 0, 0, 86_400),
        line: table.line_of("client_id"),
        client_id: name,
        keys,
    };
    table.finish();
    client
}

impl Config {
    /// What can be said of clients only beside the rest.
    pub(super) fn check_clients(&self, reader: &Reader) {
        let mut names = BTreeSet::new();
        for client in &self.clients {
            let error = |key: &str, what: &str| {
                reader.error(client.line, format!("client.{key}: {what}"));
            };
            let name = &client.client_id;
            if !names.insert(name) {
                error("client_id", "another client has this name");
            }
            // Else one's tokens could be taken for the other's.
            if *name == self.server.issuer
                || self.identity.issuers.iter().any(|it| it.issuer == *name)
            {
                error("client_id", "this is an issuer's name");
            }
            let agent = &client.agent;
            if !agent.is_empty() && !self.agents.iter().any(|it| it.spiffe_id == *agent) {
                error("agent", &format!("`{agent}` is no [[agent]]"));
            }
        }
    }

    /// Files that clients name, on this machine.
    pub(super) fn check_clients_files(&self, reader: &Reader) {
        for client in &self.clients {
            let keys = match &client.keys {
                KeysFrom::File(path) => Some(path),
                _ => None,
            };
            let files = [("keys", keys), ("ca_file", client.authorities.as_ref())];
            reader.check_files(client.line, "client", &files, super::issuers::key_set);
        }
    }
}
