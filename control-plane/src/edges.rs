//! Which `[edge]` proxies have: the file's, the one that was good before it, or one
//! that their group is pinned to. A question is decided by that of the proxy which asks.

use crate::config::{Config, Edge, Route};
use capability::decide::Mode;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One `[edge]`, and what it is known by.
#[derive(Clone)]
pub struct Served {
    /// What it says.
    pub edge: Arc<Edge>,
    /// [`Edge::version`].
    pub version: String,
}

impl Served {
    /// With its version.
    #[must_use]
    pub fn new(edge: Arc<Edge>) -> Self {
        let version = edge.version();
        Self { edge, version }
    }
}

/// The beginning of a SHA-256 in hex, as filters say it.
#[must_use]
pub fn called(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

/// What a filter calls the module and the `[edge]` that it runs.
#[must_use]
pub fn name_of(module_sha256: &str, edge: &Served) -> String {
    format!("{}.{}", called(module_sha256), called(&edge.version))
}

/// A group that has its own.
struct Pinned {
    proxies: Vec<String>,
    served: Served,
}

/// All that proxies may have since this start.
pub struct Edges {
    file: Served,
    begun: Served,
    all_have_the_files: AtomicBool,
    pinned: BTreeMap<String, Pinned>,
}

impl Edges {
    /// This start begins with `begun`, which may not be the file's.
    #[must_use]
    pub fn new(config: &Config, begun: Served) -> Self {
        let file = Served::new(config.edge.clone());
        let groups = config.edge.groups.iter().filter_map(|group| {
            let pinned = Pinned {
                proxies: group.proxies.clone(),
                served: Served::new(group.config.clone()?),
            };
            Some((group.name.clone(), pinned))
        });
        Self {
            all_have_the_files: AtomicBool::new(file.version == begun.version),
            pinned: groups.collect(),
            file,
            begun,
        }
    }

    /// The file's.
    #[must_use]
    pub fn file(&self) -> &Served {
        &self.file
    }

    /// The one that a group is pinned to.
    #[must_use]
    pub fn pinned(&self, group: &str) -> Option<&Served> {
        self.pinned.get(group).map(|pinned| &pinned.served)
    }

    /// Whether proxies that are not pinned have the file's, or what was begun with.
    pub fn set_for_all(&self, the_files: bool) {
        self.all_have_the_files.store(the_files, Ordering::SeqCst);
    }

    fn all_have_the_files(&self) -> bool {
        self.all_have_the_files.load(Ordering::SeqCst)
    }

    fn for_all(&self) -> &Served {
        if self.all_have_the_files() {
            &self.file
        } else {
            &self.begun
        }
    }

    /// What the filter runs that says it is `module`, at this proxy; a group's own is
    /// for that group's identities alone.
    #[must_use]
    pub fn of(&self, proxy: &str, module: &str) -> Arc<Edge> {
        let version = module.rsplit_once('.').map_or("", |(_, version)| version);
        let pinned = self.pinned.values();
        let own = pinned.filter(|it| it.proxies.iter().any(|id| id == proxy));
        let mut all = [&self.file, &self.begun]
            .into_iter()
            .chain(own.map(|it| &it.served));
        let found = all.find(|it| called(&it.version) == version);
        found.unwrap_or_else(|| self.for_all()).edge.clone()
    }

    /// Each that some proxy is to have now.
    fn all(&self) -> impl Iterator<Item = &Edge> {
        let begun = Some(&self.begun).filter(|_| !self.all_have_the_files());
        let pinned = self.pinned.values().map(|it| &it.served);
        let all = std::iter::once(&self.file).chain(begun).chain(pinned);
        all.map(|it| &*it.edge)
    }

    /// The routes that proxies of no pinned group enforce: those that all others
    /// enforce as well, and those that they don't.
    #[must_use]
    pub fn enforced(&self) -> (Vec<Route>, Vec<Route>) {
        let routes = self.for_all().edge.routes.iter();
        let own = routes.filter(|route| route.mode == Mode::Enforce).cloned();
        own.partition(|route| {
            let same = |it: &Route| {
                it.mode == Mode::Enforce
                    && (&it.name, &it.site, &it.path_prefix)
                        == (&route.name, &route.site, &route.path_prefix)
            };
            self.all().all(|edge| edge.routes.iter().any(same))
        })
    }

    /// The longest that any of them let a request be held since this start, in seconds.
    #[must_use]
    pub fn hold_max_s(&self) -> u64 {
        let begun = std::iter::once(&*self.begun.edge);
        let all = self.all().chain(begun).map(|edge| edge.hold_s);
        all.max().unwrap_or_default()
    }

    /// The names of routes on which nothing is refused by some of them.
    #[must_use]
    pub fn observed_routes(&self) -> Vec<&str> {
        self.gathered(Edge::observed_routes)
    }

    /// What passes without the filter by some of them, a line for each.
    #[must_use]
    pub fn told_exempt(&self) -> Vec<String> {
        self.gathered(|edge| edge.exempt.told())
    }

    /// The same, as much as a journal's line has room for.
    #[must_use]
    pub fn exempt_for_journal(&self) -> Vec<String> {
        crate::config::Exempt::cut_for_journal(&self.told_exempt())
    }

    fn gathered<'a, T: PartialEq>(&'a self, of: impl Fn(&'a Edge) -> Vec<T>) -> Vec<T> {
        let mut gathered = Vec::new();
        for one in self.all().flat_map(of) {
            if !gathered.contains(&one) {
                gathered.push(one);
            }
        }
        gathered
    }
}
