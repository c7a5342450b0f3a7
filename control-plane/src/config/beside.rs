//! Several `[edge]` beside each other: the file's, those that groups are pinned to,
//! and the one that was good last. Tokens are made for all of them alike.

use super::edge;
use super::reader::{ConfigError, Reader};
use super::types::{Config, Edge};
use capability::decide::Mode;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Whose a table `[edge]` is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// All proxies'; the module, the groups and how things are rolled out are in it.
    Config,
    /// One group's, which has none of that.
    Group,
}

impl Edge {
    /// Reads the file that a group is pinned to: `[edge]` alone, as in a config.
    ///
    /// # Errors
    /// Every problem found, each with file and line.
    pub(super) fn of_group(path: &Path) -> Result<Self, Vec<ConfigError>> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let message =
                format!("can't read a group's [edge]: {error}; correct edge.group.config");
            vec![ConfigError::file(path, message)]
        })?;
        let reader = Reader::new(path, &text);
        let root = reader.root()?;
        let own = edge(&root.table("edge"), Whose::Group);
        for key in root.keys().iter().filter(|key| *key != "edge") {
            let message = "a group has an [edge] of its own and nothing else; this would not count here, take it out";
            root.error(key, message.into());
        }
        reader.result(own)
    }

    /// All of it but who gets it and the modules, as text to keep.
    #[must_use]
    pub fn to_keep(&self) -> String {
        // A struct of texts, numbers and lists of those has a text.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What [`Edge::to_keep`] kept.
    #[must_use]
    pub fn of_kept(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// SHA-256 of [`Edge::to_keep`], hex: what the log and filters know it by.
    #[must_use]
    pub fn version(&self) -> String {
        hex::encode(Sha256::digest(self.to_keep()))
    }

    /// Why proxies can't have this one while others have `other`; `None`: they can.
    ///
    /// An agent does not know which proxy will have its request, so a token has to be
    /// good at either. And rules about bodies are for everybody at once: where one
    /// proxy does not read what another reads, they would not hold.
    #[must_use]
    pub fn apart_from(&self, other: &Self) -> Option<&'static str> {
        let sites = |edge: &Self| edge.all_sites().collect::<Vec<_>>();
        if sites(self) != sites(other) {
            Some("`origin`, `resource` and [[edge.site]] have to be the same for all proxies")
        } else if self.client_certificates != other.client_certificates {
            Some("`client_certificates` has to be the same for all proxies")
        } else if !self.reads_what(other) {
            Some(
                "`body` and `body_facts` of each path have to be the same for all proxies: policies rest on them",
            )
        } else {
            None
        }
    }

    /// Whether the same is read of the bodies of each path.
    fn reads_what(&self, other: &Self) -> bool {
        let prefixes = self.routes.iter().chain(&other.routes);
        let mut places = prefixes.map(|route| (route.site.as_deref(), route.path_prefix.as_str()));
        let read = |edge: &Self, site: Option<&str>, prefix: &str| {
            let authority = edge
                .site_named(site)
                .map(|site| site.authority().to_owned());
            let body = edge.body_of(&authority?, prefix)?;
            Some(body.facts.clone())
        };
        places.all(|(site, prefix)| read(self, site, prefix) == read(other, site, prefix))
    }

    /// Whether something that is let through without a decision here may need one
    /// there: then nobody waits, and nobody goes back.
    #[must_use]
    pub fn lets_more_through_than(&self, other: &Self) -> bool {
        let observes = |edge: &Self| edge.routes.iter().any(|it| it.mode == Mode::Observe);
        let nothing = super::Exempt::default();
        let open = self.exempt != nothing || observes(self);
        open && (&self.exempt, &self.routes) != (&other.exempt, &other.routes)
    }
}

impl Config {
    /// The file's `[edge]`, and those that groups are pinned to.
    pub fn edges(&self) -> impl Iterator<Item = &Edge> {
        let groups = self.edge.groups.iter();
        let pinned = groups.filter_map(|group| group.config.as_deref());
        std::iter::once(&*self.edge).chain(pinned)
    }

    /// The facts of all routes' bodies, for policies.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<String, policy::FactKind> {
        self.edges().flat_map(Edge::facts).collect()
    }

    /// Groups and what they are pinned to.
    pub(super) fn check_groups(&self, reader: &Reader) {
        for group in &self.edge.groups {
            let unknown = group.proxies.iter().filter(|it| !self.proxies.contains(it));
            for member in unknown {
                let message = format!("edge.group.proxies: `{member}` is no [[proxy]]");
                reader.error(group.proxies_line, message);
            }
            let mut others = self.edges();
            let own = group.config.as_ref();
            if let Some(why) = own.and_then(|own| others.find_map(|it| own.apart_from(it))) {
                reader.error(group.config_line, format!("edge.group.config: {why}"));
            }
        }
    }
}
