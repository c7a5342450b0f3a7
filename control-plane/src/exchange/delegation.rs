//! What one agent lets another do: the `delegation` element of `authorization_details`.
//!
//! It is never more than the delegation that it comes from, and what is more is refused
//! rather than cut.

use super::form::Params;
use super::{Asking, Exchange, ExchangeError, TYPE_DELEGATION};
use capability::action::Action;
use ledger::model::{GrantKind, GrantTerms, Scope, TokenRecord};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Its `type`.
const TYPE: &str = "delegation";
/// Locations of one delegation.
const LOCATIONS_MAX: usize = 16;
/// Uses of one delegation.
const USES_MAX: u64 = 1_024;
/// Seconds that one lives, unless it says more or less.
const LIFETIME_S: u64 = 300;

/// A delegation that may be made.
pub(super) struct Delegation {
    pub(super) terms: GrantTerms,
    /// When it ends, in seconds.
    pub(super) expires_s: u64,
    /// The element as it counts.
    pub(super) element: Value,
}

fn details<T>(what: String) -> Result<T, ExchangeError> {
    Err(ExchangeError::Details(what))
}

/// A delegation is another type of token, and no action.
pub(super) fn is_none(element: &Value) -> Result<(), ExchangeError> {
    if element.get("type").and_then(Value::as_str) != Some(TYPE) {
        return Ok(());
    }
    details(format!(
        "a delegation is asked for with requested_token_type {TYPE_DELEGATION}"
    ))
}

/// What a location that ends in `/*` begins with. In a query `*` is a character like any
/// other.
fn base(location: &str) -> Option<&str> {
    let base = location.strip_suffix('*')?;
    (base.ends_with('/') && !base.contains('?')).then_some(base)
}

/// Whether a scope covers an action, by its normalised location.
fn covers(scope: &Scope, method: &str, location: &str) -> bool {
    let at = |known: &String| match base(known) {
        Some(base) => location.starts_with(base),
        None => known == location,
    };
    scope.methods.iter().any(|it| it == method) && scope.locations.iter().any(at)
}

/// Whether a delegation covers this; another grant covers what policy allows.
pub(super) fn is_covered(grant: &TokenRecord, method: &str, location: &str) -> bool {
    let terms = grant.grant.as_ref();
    let terms = terms.filter(|it| it.kind == GrantKind::Delegation);
    terms.is_none_or(|it| it.scope.iter().any(|one| covers(one, method, location)))
}

fn texts<'e>(element: &'e Value, name: &str, most: usize) -> Result<Vec<&'e str>, ExchangeError> {
    let list = element.get(name).and_then(Value::as_array);
    let texts: Option<Vec<&str>> = list.and_then(|all| all.iter().map(Value::as_str).collect());
    match texts {
        Some(texts) if !texts.is_empty() && texts.len() <= most => Ok(texts),
        _ => details(format!(
            "`{name}` of a delegation is a list of 1 to {most} texts"
        )),
    }
}

fn number(element: &Value, name: &str, default: u64, most: u64) -> Result<u64, ExchangeError> {
    match element.get(name) {
        None => Ok(default.min(most)),
        Some(value) => match value.as_u64() {
            Some(number) if number <= most => Ok(number),
            _ => details(format!(
                "`{name}` is a whole number, and at most {most} here: what is passed on is never more than what there is"
            )),
        },
    }
}

impl Exchange {
    /// Reads one that an agent wants to make, by what it has itself.
    pub(super) fn delegation(
        &self,
        element: &Value,
        asking: Asking<'_>,
        params: &Params,
    ) -> Result<Delegation, ExchangeError> {
        const MEMBERS: [&str; 7] = [
            "type",
            "delegate",
            "actions",
            "locations",
            "depth",
            "uses",
            "lifetime_s",
        ];
        let token = &self.core.config.token;
        let (agent, now_ms) = (asking.caller.agent, asking.now_ms);
        let under = asking.proven.under.as_deref();
        let members = element.as_object();
        if members.is_none_or(|it| it.get("type").and_then(Value::as_str) != Some(TYPE)) {
            return details(format!("the element has to be an object of `type` {TYPE}"));
        }
        if let Some(other) =
            members.and_then(|it| it.keys().find(|it| !MEMBERS.contains(&it.as_str())))
        {
            let shown: String = other.chars().take(64).collect();
            return details(format!(
                "a delegation has no member `{shown}`: leave it out"
            ));
        }
        let delegate = element.get("delegate").and_then(Value::as_str);
        let delegate = delegate.filter(|it| capability::spiffe::is_workload(it) && *it != agent);
        let Some(delegate) = delegate else {
            return details("`delegate` is the SPIFFE ID of another agent".into());
        };
        let of_delegation = under.and_then(|it| it.grant.as_ref());
        let of_delegation = of_delegation.filter(|it| it.kind == GrantKind::Delegation);
        let depth_max = match of_delegation {
            Some(terms) => match terms.depth.checked_sub(1) {
                Some(left) => u64::from(left),
                None => return details("what is delegated here may not be passed on".into()),
            },
            None => u64::from(token.delegation_depth),
        };
        let uses_max = of_delegation.and_then(|it| it.uses).unwrap_or(USES_MAX);
        let now_s = now_ms / 1000;
        // Neither longer than the grant that was shown, nor than the user's word.
        let users = asking.proven.user.as_ref().map(|it| it.evidence.expires_ms);
        let ends = under.map(|it| it.expires_ms).into_iter().chain(users);
        let left_s = ends
            .min()
            .map_or(u64::MAX, |ms| (ms / 1000).saturating_sub(now_s));
        let depth = number(element, "depth", 0, depth_max)?;
        let uses = number(element, "uses", 1, uses_max)?;
        let lifetime_s = number(
            element,
            "lifetime_s",
            LIFETIME_S,
            token.delegation_s.min(left_s),
        )?;
        if uses == 0 || lifetime_s == 0 {
            return details("a delegation has at least one use and one second; there may be none left, or none allowed here".into());
        }
        let scope = self.scope(element, under, params)?;
        let element = json!({
            "type": TYPE, "delegate": delegate, "actions": scope.methods,
            "locations": scope.locations, "depth": depth, "uses": uses, "lifetime_s": lifetime_s,
        });
        Ok(Delegation {
            terms: GrantTerms {
                kind: GrantKind::Delegation,
                holder: Some(delegate.to_owned()),
                scope: vec![scope],
                depth: u8::try_from(depth).unwrap_or_default(),
                uses: Some(uses),
                deferred: None,
            },
            expires_s: now_s.saturating_add(lifetime_s),
            element,
        })
    }

    /// What it covers, normalised: each location at one of the sites, and none of it more
    /// than `under` covers.
    fn scope(
        &self,
        element: &Value,
        under: Option<&TokenRecord>,
        params: &Params,
    ) -> Result<Scope, ExchangeError> {
        let issuer = &self.core.config.server.issuer;
        let methods = texts(element, "actions", 7)?;
        let wanted = texts(element, "locations", LOCATIONS_MAX)?;
        let mut locations = BTreeSet::new();
        for location in wanted {
            let base = location.strip_suffix("/*");
            for method in &methods {
                let action = Action::http(method, base.unwrap_or(location))
                    .map_err(|error| ExchangeError::Details(error.to_string()))?;
                let site = self.site(&action)?;
                params.check_delegation_target(issuer, &site.resource)?;
                let mut normal = action.location();
                if base.is_some() {
                    if normal.contains('?') {
                        return details("what is under a location has no query of its own".into());
                    }
                    if !normal.ends_with('/') {
                        normal.push('/');
                    }
                    normal.push('*');
                }
                if under.is_some_and(|under| !is_covered(under, method, &normal)) {
                    return details(
                        "an action at a location is more than the delegation covers that it comes from".into(),
                    );
                }
                locations.insert(normal);
            }
        }
        let methods: BTreeSet<&str> = methods.into_iter().collect();
        Ok(Scope {
            methods: methods.into_iter().map(str::to_owned).collect(),
            locations: locations.into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_what_is_at_its_locations_and_under_them() {
        let scope = Scope {
            methods: vec!["GET".into(), "PUT".into()],
            locations: vec![
                "https://a/files/*".into(),
                "https://a/one?q=1".into(),
                "https://a/two?q=*".into(),
                "https://a/two?q=/*".into(),
            ],
        };
        let table = [
            ("GET", "https://a/files/x", true),
            ("PUT", "https://a/files/x/y?z", true),
            ("POST", "https://a/files/x", false),
            ("GET", "https://a/files", false),
            ("GET", "https://a/filesystem", false),
            ("GET", "https://b/files/x", false),
            ("GET", "https://a/one?q=1", true),
            ("GET", "https://a/one?q=12", false),
            ("GET", "https://a/one", false),
            // Others that are to be covered whole.
            ("GET", "https://a/files/*", true),
            ("GET", "https://a/files/sub/*", true),
            ("GET", "https://a/*", false),
            ("GET", "https://a/one/*", false),
            // Queries that have a star are no patterns.
            ("GET", "https://a/two?q=*", true),
            ("GET", "https://a/two?q=", false),
            ("GET", "https://a/two?q=1", false),
            ("GET", "https://a/two?q=*&all", false),
            ("GET", "https://a/two?q=/*", true),
            ("GET", "https://a/two?q=/x", false),
        ];
        for (method, location, wanted) in table {
            assert_eq!(
                covers(&scope, method, location),
                wanted,
                "{method} {location}"
            );
        }
    }
}
