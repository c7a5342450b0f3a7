//! What passes without the filter: `[[edge.unguarded]]`, `[[edge.probe]]`,
//! `[[edge.preflight]]`. Each has a table of its own, so that nothing is exempt
//! because something was left out or misspelt.

use super::reader::Table;
use super::sites;
use super::types::{Edge, Route, Site};
use capability::decide::Mode;
use serde::{Deserialize, Serialize};

/// What a journal's line has room for, in bytes.
const JOURNAL_BYTES: usize = 2_048;

/// A route without the filter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unguarded {
    /// Where it leads.
    pub route: Route,
    /// The guarded routes whose upstream it leads to.
    pub shares_upstream_with: Vec<String>,
}

/// A health probe: one method on one exact path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path, without a query.
    pub path: String,
    /// The guarded route whose upstream answers; none: Envoy does.
    pub route: Option<String>,
}

/// CORS preflights of one guarded route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preflight {
    /// Its name.
    pub name: String,
    /// The route.
    pub route: String,
    /// The web origins that Envoy answers; none: the upstream answers all.
    pub origins: Vec<String>,
}

/// Everything that is exempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exempt {
    /// `[[edge.unguarded]]`
    pub unguarded: Vec<Unguarded>,
    /// `[[edge.probe]]`
    pub probes: Vec<Probe>,
    /// `[[edge.preflight]]`
    pub preflights: Vec<Preflight>,
    /// The routes that observe.
    pub observing: Vec<xds::Observing>,
}

/// Reads them; what would exempt more than it says is an error at its place.
pub(super) fn read(edge: &Table<'_>, routes: &[Route], sites: &[Site]) -> Exempt {
    let (unguarded, probes, preflights) = (
        edge.tables("unguarded"),
        edge.tables("probe"),
        edge.tables("preflight"),
    );
    let exempt = Exempt {
        unguarded: unguarded
            .iter()
            .map(|it| unguarded_route(it, sites))
            .collect(),
        probes: probes.iter().map(probe).collect(),
        preflights: preflights.iter().map(preflight).collect(),
        observing: observing(routes),
    };
    let guarded: Option<Vec<_>> = routes.iter().map(Route::for_envoy).collect();
    let (Some(guarded), Some(told)) = (guarded, exempt.for_envoy()) else {
        // Which upstream is none has been said.
        return exempt;
    };
    let names = routes.iter().map(|it| &it.name);
    let names = names.chain(exempt.unguarded.iter().map(|it| &it.route.name));
    let names = names.chain(exempt.probes.iter().map(|it| &it.name));
    let names = names.chain(exempt.preflights.iter().map(|it| &it.name));
    let routes = edge.tables("route");
    let entries = routes.iter().chain(&unguarded).chain(&probes);
    let entries = entries.chain(&preflights);
    let entries: Vec<_> = names.zip(entries).collect();
    for (name, error) in told.problems(&guarded) {
        if name.is_empty() && !matches!(error, xds::SettingsError::Exempt(_)) {
            continue;
        }
        match entries.iter().rev().find(|(own, _)| **own == name) {
            Some((_, entry)) => entry.error("name", error.to_string()),
            None => edge.error("unguarded", error.to_string()),
        }
    }
    exempt
}

fn observing(routes: &[Route]) -> Vec<xds::Observing> {
    let observed = routes.iter().filter(|route| route.mode == Mode::Observe);
    observed
        .map(|route| xds::Observing {
            route: route.name.clone(),
            shares_upstream_with: route.shares_upstream_with.clone(),
        })
        .collect()
}

/// What goes with the mode of a route, and what does not.
pub(super) fn check_mode(entry: &Table<'_>, route: &Route) {
    if route.mode == Mode::Observe && route.body.is_some() {
        let both = "a route that observes refuses nothing, so it can't wait for bodies that may be too long or late; enforce it";
        entry.error("body", both.into());
    }
    if route.mode == Mode::Observe && route.nonce {
        let both = "a route that observes refuses nothing, so no client would be told a nonce, and none of their proofs be good; enforce it";
        entry.error("nonce", both.into());
    }
    if route.mode == Mode::Enforce && !route.shares_upstream_with.is_empty() {
        let both = "a route that enforces may share its upstream unsaid; leave this out";
        entry.error("shares_upstream_with", both.into());
    }
}

fn unguarded_route(entry: &Table<'_>, sites: &[Site]) -> Unguarded {
    let unguarded = Unguarded {
        route: Route {
            name: entry.text("name"),
            path_prefix: entry.text("path_prefix"),
            upstream: entry.host_port("upstream"),
            site: entry.optional_text("site"),
            body: None,
            mode: Mode::Enforce,
            shares_upstream_with: Vec::new(),
            nonce: false,
            decision_header: false,
            decision_audience: None,
        },
        shares_upstream_with: entry.texts("shares_upstream_with"),
    };
    sites::check_name(entry, sites, unguarded.route.site.as_deref());
    entry.finish();
    unguarded
}

fn probe(entry: &Table<'_>) -> Probe {
    let probe = Probe {
        name: entry.text("name"),
        method: entry.text_or("method", "GET"),
        path: entry.text("path"),
        route: entry.optional_text("route"),
    };
    entry.finish();
    probe
}

fn preflight(entry: &Table<'_>) -> Preflight {
    let preflight = Preflight {
        name: entry.text("name"),
        route: entry.text("route"),
        origins: entry.texts("origins"),
    };
    entry.finish();
    preflight
}

impl Exempt {
    /// As Envoy is told of it; none when an `upstream` has no port.
    #[must_use]
    pub fn for_envoy(&self) -> Option<xds::Exempt> {
        let mut told = xds::Exempt::default();
        for unguarded in &self.unguarded {
            told.unguarded.push(xds::Unguarded {
                route: unguarded.route.for_envoy()?,
                shares_upstream_with: unguarded.shares_upstream_with.clone(),
            });
        }
        told.probes
            .extend(self.probes.iter().map(|probe| xds::Probe {
                name: probe.name.clone(),
                method: probe.method.clone(),
                path: probe.path.clone(),
                route: probe.route.clone(),
            }));
        told.preflights
            .extend(self.preflights.iter().map(|preflight| xds::Preflight {
                name: preflight.name.clone(),
                route: preflight.route.clone(),
                origins: preflight.origins.clone(),
            }));
        told.observing.clone_from(&self.observing);
        Some(told)
    }

    /// What [`Exempt::told`] tells, cut so that a journal's line has room for it.
    #[must_use]
    pub fn cut_for_journal(all: &[String]) -> Vec<String> {
        let mut room = JOURNAL_BYTES;
        let fits = |line: &String| {
            room = room.saturating_sub(line.len());
            room > 0
        };
        let mut lines: Vec<String> = all.iter().cloned().take_while(fits).collect();
        let left = all.len().saturating_sub(lines.len());
        if left > 0 {
            lines.push(format!("and {left} more"));
        }
        lines
    }

    /// One line for each, for people: in the log, in `writ status`, on the pages.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for Unguarded { route, .. } in &self.unguarded {
            let site = route
                .site
                .as_ref()
                .map(|site| format!(" of {site}"))
                .unwrap_or_default();
            lines.push(format!(
                "{}: {}{site} to {} without any check",
                route.name, route.path_prefix, route.upstream
            ));
        }
        for probe in &self.probes {
            let by = probe.route.as_ref().map_or_else(
                || "Envoy".to_owned(),
                |route| format!("the upstream of {route}"),
            );
            lines.push(format!(
                "{}: {} {} answered by {by}",
                probe.name, probe.method, probe.path
            ));
        }
        for preflight in &self.preflights {
            let by = if preflight.origins.is_empty() {
                "its upstream"
            } else {
                "Envoy"
            };
            lines.push(format!(
                "{}: CORS preflights of {} answered by {by}",
                preflight.name, preflight.route
            ));
        }
        lines
    }
}

impl Site {
    /// Where its metadata is: between host and path of the resource (RFC 9728, section
    /// 3.1).
    #[must_use]
    pub fn metadata_path(&self) -> String {
        let path = self.resource.strip_prefix(&self.origin).unwrap_or_default();
        let path = path.trim_end_matches('/');
        format!("/.well-known/oauth-protected-resource{path}")
    }
}

impl Edge {
    /// Adds the names of what is exempt to those that a check of Envoy's
    /// configuration takes as said.
    pub fn name_exemptions(&self, names: &mut xds::lint::Names) {
        for unguarded in &self.exempt.unguarded {
            names.unguarded.insert(unguarded.route.name.clone());
            if !unguarded.shares_upstream_with.is_empty() {
                names.shared.insert(unguarded.route.name.clone());
            }
        }
        let probes = self.exempt.probes.iter().map(|probe| &probe.name);
        let preflights = self.exempt.preflights.iter().map(|it| &it.name);
        for name in probes.chain(preflights) {
            names.unguarded.insert(name.clone());
            // Those lead to a guarded route's upstream by what they are.
            names.shared.insert(name.clone());
        }
    }

    /// The resource metadata of each site (RFC 9728, section 2), which Envoy
    /// answers with.
    #[must_use]
    pub fn metadata_for_envoy(&self, issuer: &str) -> Vec<xds::Metadata> {
        if !self.metadata {
            return Vec::new();
        }
        let all = self.all_sites().map(|site| {
            let path = site.metadata_path();
            let body = serde_json::json!({
                "resource": site.resource,
                "authorization_servers": [issuer],
                "dpop_bound_access_tokens_required": true,
                "dpop_signing_alg_values_supported": ["ES256", "Ed25519", "EdDSA"],
                "authorization_details_types_supported": self.details_types(Some(&site.name)),
            });
            xds::Metadata {
                site: Some(site.name).filter(|name| !name.is_empty()),
                path,
                body: body.to_string(),
            }
        });
        all.collect()
    }
}
