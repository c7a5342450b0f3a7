//! What a user's token or an ID-JAG narrows: resources (RFC 8707), actions (RFC 9396) and
//! scopes (RFC 9068, section 2.2.3).

use super::ExchangeError;
use super::claims::Claims;
use capability::action::Action;
use capability::reason::Reason;
use capability::url::Target;
use serde_json::Value;

/// What it is for, where it says.
#[derive(Debug, Default)]
pub(super) struct Terms {
    resources: Option<Vec<String>>,
    elements: Option<Vec<Action>>,
}

fn no<T>(reason: Reason, what: &str) -> Result<T, ExchangeError> {
    Err(ExchangeError::Evidence(reason, what.to_owned()))
}

impl Terms {
    /// Those of a token. `scopes` are the ones that narrow nothing here; none: they are not
    /// looked at.
    pub(super) fn of(claims: &Claims, scopes: Option<&[String]>) -> Result<Self, ExchangeError> {
        let wrong = |what| no(Reason::TokenMalformed, what);
        if let Some(taken) = scopes {
            check_scope(claims.get("scope"), taken)?;
        }
        let resources = match claims.get("resource") {
            None => None,
            Some(Value::String(one)) => Some(vec![one.clone()]),
            Some(Value::Array(all)) => {
                let all = all.iter().map(|it| it.as_str().map(str::to_owned));
                let Some(all) = all.collect() else {
                    return wrong("its `resource` is no URL, and no list of URLs");
                };
                Some(all)
            }
            Some(_) => return wrong("its `resource` is no URL, and no list of URLs"),
        };
        let elements = match claims.get("authorization_details") {
            None => None,
            Some(Value::Array(all)) => {
                let all = all.iter().map(Action::from_details);
                let Ok(all) = all.collect() else {
                    return wrong(
                        "its `authorization_details` are not actions that are known here",
                    );
                };
                Some(all)
            }
            Some(_) => return wrong("its `authorization_details` is no list"),
        };
        Ok(Self {
            resources,
            elements,
        })
    }

    /// Whether it is for less than policy allows: what comes of it has to be looked at
    /// each time.
    pub(super) fn is_narrowed(&self) -> bool {
        self.resources.is_some() || self.elements.is_some()
    }

    /// Whether they cover this action.
    pub(super) fn check(&self, action: &Action) -> Result<(), ExchangeError> {
        let under = |resource: &String| {
            let resource = Target::location(resource);
            resource.is_ok_and(|it| action.target().is_within(&it))
        };
        let Self {
            resources,
            elements,
        } = self;
        if resources.as_ref().is_some_and(|all| !all.iter().any(under)) {
            let what =
                "`locations` is not under the `resource` of the user's token or the assertion";
            return Err(ExchangeError::Target(what.into()));
        }
        if elements.as_ref().is_some_and(|all| !all.contains(action)) {
            let what = "it is none of the actions in the `authorization_details` of the user's token or the assertion";
            return Err(ExchangeError::Details(what.into()));
        }
        Ok(())
    }
}

fn check_scope(scope: Option<&Value>, taken: &[String]) -> Result<(), ExchangeError> {
    let scope = match scope {
        None => return Ok(()),
        Some(Value::String(scope)) => scope,
        Some(_) => return no(Reason::TokenMalformed, "its `scope` is no string"),
    };
    let mut words = scope.split(' ').filter(|it| !it.is_empty());
    // What it narrows nobody here would hold the agent to.
    if words.any(|it| !taken.iter().any(|taken| taken == it)) {
        return no(
            Reason::ActionMismatch,
            "its `scope` narrows it in a way that is not known here; the operator says which scopes do not (identity.issuer.users.scopes)",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn action(method: &str, location: &str) -> Action {
        Action::http(method, location).unwrap()
    }

    #[test]
    fn an_action_is_within_all_that_a_token_narrows() {
        let element = |method: &str, location: &str| json!({ "type": "http_request", "actions": [method], "locations": [location] });
        let get = element("GET", "https://a/files/x");
        let table = [
            (json!({}), None),
            (json!({ "resource": "https://a" }), None),
            (json!({ "resource": "https://a/files" }), None),
            (json!({ "resource": ["https://b", "https://a"] }), None),
            (json!({ "authorization_details": [get] }), None),
            (
                json!({ "authorization_details": [element("POST", "https://a/files/x"), get] }),
                None,
            ),
            (json!({ "resource": "https://b" }), Some("invalid_target")),
            (
                json!({ "resource": "https://a/file" }),
                Some("invalid_target"),
            ),
            (json!({ "resource": "a" }), Some("invalid_target")),
            (json!({ "resource": [] }), Some("invalid_target")),
            (
                json!({ "authorization_details": [] }),
                Some("invalid_authorization_details"),
            ),
            (
                json!({ "authorization_details": [element("POST", "https://a/files/x")] }),
                Some("invalid_authorization_details"),
            ),
            (
                json!({ "resource": "https://b", "authorization_details": [get] }),
                Some("invalid_target"),
            ),
        ];
        for (claims, wanted) in table {
            let terms = Terms::of(claims.as_object().unwrap(), None).unwrap();
            let found = terms.check(&action("GET", "https://a/files/x"));
            assert_eq!(found.err().map(|it| it.code()), wanted, "{claims}");
            let narrows = claims != json!({});
            assert_eq!(terms.is_narrowed(), narrows, "{claims}");
        }
    }

    #[test]
    fn what_narrows_in_a_way_that_is_not_known_is_refused() {
        let taken = ["openid".to_owned(), "email".to_owned()];
        let (mismatch, malformed) = (Some(Reason::ActionMismatch), Some(Reason::TokenMalformed));
        let table = [
            (json!({ "scope": "openid  email" }), None, None),
            (json!({ "scope": "" }), None, None),
            (json!({ "scope": "openid pay" }), mismatch, None),
            (json!({ "scope": "openid\tpay" }), mismatch, None),
            // Where scopes are not looked at they may be whatever they are.
            (json!({ "scope": ["openid"] }), malformed, None),
            (json!({ "scope": null }), malformed, None),
            (json!({ "resource": 7 }), malformed, malformed),
            (json!({ "resource": [7] }), malformed, malformed),
            (json!({ "resource": null }), malformed, malformed),
            (json!({ "authorization_details": {} }), malformed, malformed),
            (
                json!({ "authorization_details": null }),
                malformed,
                malformed,
            ),
            (
                json!({ "authorization_details": [{ "type": "payment" }] }),
                malformed,
                malformed,
            ),
        ];
        for (claims, checked, unchecked) in table {
            for (scopes, wanted) in [(Some(&taken[..]), checked), (None, unchecked)] {
                let found = Terms::of(claims.as_object().unwrap(), scopes);
                let found = found.err().map(|it| it.reason());
                assert_eq!(found, wanted, "{claims} {scopes:?}");
            }
        }
    }
}
