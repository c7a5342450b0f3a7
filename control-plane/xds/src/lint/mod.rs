//! A check of any Envoy configuration: whether a guarded route could be reached
//! unguarded, or be reached twice.
//!
//! ```
//! let mut lint = xds::lint::Lint::new(xds::lint::Names::default());
//! lint.add("envoy.yaml", "static_resources: { listeners: [] }")?;
//! assert!(lint.report().findings.is_empty());
//! # Ok::<(), xds::lint::Unreadable>(())
//! ```
//!
//! A file is a bootstrap, in YAML or JSON, or what a running Envoy's
//! `/config_dump` says, or single resources (`{"@type": …}`, `{"resources": […]}`).
//! Several files are one configuration. All findings come at once. What is no
//! finding is what this page of rules does not know: it replaces no test against
//! the running proxy.

mod guard;
mod listener;
mod pool;
mod reach;
mod routes;
mod rule;
mod stripped;
mod tree;
mod unguarded;
mod upstreams;

use std::collections::BTreeSet;
use std::fmt;

use pool::Pool;
use reach::To;
pub use rule::Rule;
use tree::{At, Node};
pub(crate) use upstreams::place;

use crate::FILTER_NAME;

/// What is an exemption because somebody said so by name.
#[derive(Debug, Clone)]
pub struct Names {
    /// The name of Writ's filter in the chain; `writ.filter`.
    pub filter: String,
    /// Listeners, virtual hosts, routes and weighted clusters that may be without the
    /// filter, and clusters that may lead to the admin interface.
    pub unguarded: BTreeSet<String>,
    /// Of those, the ones that may lead to an upstream of a guarded route.
    pub shared: BTreeSet<String>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            filter: FILTER_NAME.to_owned(),
            unguarded: BTreeSet::new(),
            shared: BTreeSet::new(),
        }
    }
}

/// A file that can't be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Unreadable {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// Why.
    pub why: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.why),
            line => write!(f, "{}:{line}: {}", self.file, self.why),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which rule says so.
    pub rule: Rule,
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// Where in the file, as in `static_resources.listeners[0].name`.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            file,
            line,
            path,
            message,
        } = self;
        write!(f, "{file}:{line}: {path}: {rule}: {message}")
    }
}

/// What was found, and what could not be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Everything that is wrong, in the order of files and lines.
    pub findings: Vec<Finding>,
    /// How many routes were found to be guarded.
    pub guarded_routes: usize,
    /// What is elsewhere and was not judged, in words.
    pub notes: Vec<String>,
}

/// Gathers files, and judges them together.
#[derive(Debug)]
pub struct Lint {
    names: Names,
    files: Vec<(String, Node)>,
}

impl Lint {
    /// With these exemptions and no file yet.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self {
            names,
            files: Vec::new(),
        }
    }

    /// Takes a file's text.
    ///
    /// # Errors
    /// When it is neither YAML nor JSON, is too large, has a name twice in one
    /// object, or is nothing of Envoy's.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), Unreadable> {
        let unreadable = |line, why: String| Unreadable {
            file: file.to_owned(),
            line,
            why,
        };
        let node = tree::parse(text).map_err(|(line, why)| unreadable(line, why))?;
        if !Pool::default().add(&At::root(file, &node)) {
            return Err(unreadable(
                0,
                "this is no Envoy configuration: a bootstrap, a /config_dump, or resources with their @type".to_owned(),
            ));
        }
        self.files.push((file.to_owned(), node));
        Ok(())
    }

    /// Judges everything that was added.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut pool = Pool::default();
        for (file, node) in &self.files {
            pool.add(&At::root(file, node));
        }
        let mut judge = Judge {
            names: &self.names,
            pool: &pool,
            report: Report::default(),
            used: BTreeSet::new(),
            guarded: Vec::new(),
            unguarded: Vec::new(),
        };
        judge.all();
        let Judge {
            mut report, used, ..
        } = judge;
        let unknown = self.names.unguarded.difference(&used);
        for name in unknown {
            report.notes.push(format!(
                "nothing has the name {name:?}, which may be unguarded"
            ));
        }
        let mut said = BTreeSet::new();
        report.notes.retain(|note| said.insert(note.clone()));
        // One file's lines in their order; a listener may be in a dump twice.
        let order: Vec<&str> = self.files.iter().map(|(file, _)| file.as_str()).collect();
        report.findings.sort_by_key(|found| {
            let file = order.iter().position(|file| *file == found.file);
            (file, found.line, found.path.clone(), found.rule)
        });
        report.findings.dedup();
        report
    }
}

/// The state of one judgement.
struct Judge<'a> {
    names: &'a Names,
    pool: &'a Pool<'a>,
    report: Report,
    /// Names that exempted something.
    used: BTreeSet<String>,
    /// Clusters that guarded routes lead to.
    guarded: Vec<String>,
    /// Where something unguarded leads, and what that is.
    unguarded: Vec<Unguarded<'a>>,
}

/// Something unguarded that leads somewhere.
struct Unguarded<'a> {
    to: To,
    name: &'a str,
    at: At<'a>,
    /// Headers that it hands on, though the filter would take them off.
    leaves: Vec<&'static str>,
}

impl<'a> Judge<'a> {
    fn all(&mut self) {
        let pool = self.pool;
        for bootstrap in &pool.bootstraps {
            self.bootstrap(bootstrap);
        }
        for listener in &pool.listeners {
            self.listener(listener);
        }
        self.upstreams();
        if pool.listeners.is_empty() {
            self.note(
                "there is no listener in what was given: look at the running Envoy's /config_dump as well".to_owned(),
            );
        }
    }

    fn bootstrap(&mut self, at: &At<'a>) {
        let admin = at.get("admin").and_then(|admin| admin.get("address"));
        let socket = admin.and_then(|address| address.get("socket_address"));
        if at
            .get("dynamic_resources")
            .is_some_and(|dynamic| dynamic.said("lds_config").is_some())
            && !self.pool.listeners.is_empty()
            && !self.pool.dumped
        {
            self.note(
                "more listeners come by lds_config than are in what was given: look at the running Envoy's /config_dump as well".to_owned(),
            );
        }
        if let Some(socket) = socket {
            let address = socket.text("address");
            let loopback = address
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
            if !loopback {
                self.found(
                    Rule::AdminOpen,
                    &socket,
                    format!("the admin interface listens on {address:?}, and asks nobody who he is: use a Unix socket or loopback"),
                );
            }
        }
    }

    fn found(&mut self, rule: Rule, at: &At<'a>, message: impl Into<String>) {
        self.report.findings.push(Finding {
            rule,
            file: at.file.to_owned(),
            line: at.line(),
            path: at.path.clone(),
            message: message.into(),
        });
    }

    fn note(&mut self, note: String) {
        self.report.notes.push(note);
    }

    /// Whether this name is one of those that may be unguarded.
    fn is_named(&mut self, name: &str) -> bool {
        let named = self.names.unguarded.contains(name);
        if named {
            self.used.insert(name.to_owned());
        }
        named
    }
}
