//! Which stops are told: of what kinds, in what order, and how many.

use std::cmp::Reverse;

use axum::extract::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use ledger::model::{Rights, Stop, Target};

use super::answers::StopsAnswer;
use super::api::problem;
use super::rights::stop_json;

/// Stops in one answer.
const LISTED_MAX: usize = 1_000;
/// What there is, in the words of [`Target::kind`].
const KINDS: [&str; 7] = [
    "agent",
    "owner",
    "user",
    "delegation",
    "key",
    "token",
    "everything",
];

/// What is stopped, and what was, as far as this query asks for it.
pub(super) fn listed(rights: &Rights, query: Option<&str>) -> Response {
    if let Some(wanted) = Wanted::of(query.unwrap_or_default()) {
        return Json(wanted.of_rights(rights)).into_response();
    }
    let detail = format!(
        "the query may have `kind`, some of {} with commas between them, and `limit`, from 1 to {LISTED_MAX}",
        KINDS.join(", ")
    );
    problem(StatusCode::BAD_REQUEST, "bad_query", &detail)
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    kinds: Vec<&'static str>,
    limit: usize,
}

impl Wanted {
    /// Each part once at most, and no other.
    fn of(query: &str) -> Option<Self> {
        let (mut kinds, mut limit) = (None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let is_second = match &*name {
                "kind" => kinds.replace(kinds_of(&value)?).is_some(),
                "limit" => limit.replace(limit_of(&value)?).is_some(),
                _ => return None,
            };
            if is_second {
                return None;
            }
        }
        Some(Self {
            kinds: kinds.unwrap_or_else(|| KINDS.to_vec()),
            limit: limit.unwrap_or(LISTED_MAX),
        })
    }

    fn of_rights(&self, rights: &Rights) -> StopsAnswer {
        let all = rights.stops.values().map(|stop| &**stop);
        let all = all.filter(|stop| self.kinds.contains(&stop.target.kind()));
        let mut all: Vec<&Stop> = all.collect();
        // What is left out is what matters least.
        all.sort_by_key(|stop| {
            let is_less = stop.target != Target::Everything;
            (stop.lifted.is_some(), is_less, Reverse(stop.at_ms))
        });
        let more = all.len().saturating_sub(self.limit);
        StopsAnswer {
            stops: all.into_iter().take(self.limit).map(stop_json).collect(),
            more,
        }
    }
}

fn kinds_of(text: &str) -> Option<Vec<&'static str>> {
    let known = |word: &str| KINDS.into_iter().find(|kind| *kind == word);
    text.split(',').map(known).collect()
}

fn limit_of(text: &str) -> Option<usize> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<usize>().ok().filter(|_| is_number)?;
    (1..=LISTED_MAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::super::answers::Named;
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_query_says_each_thing_once() {
        let all = KINDS.to_vec();
        for (query, kinds, limit) in [
            ("", all.clone(), LISTED_MAX),
            ("limit=1000", all.clone(), 1_000),
            ("limit=1", all, 1),
            ("kind=agent", vec!["agent"], LISTED_MAX),
            (
                "limit=7&kind=owner,everything",
                vec!["owner", "everything"],
                7,
            ),
            ("kind=key%2Ctoken", vec!["key", "token"], LISTED_MAX),
        ] {
            let wanted = Wanted { kinds, limit };
            assert_eq!(Wanted::of(query), Some(wanted), "{query}");
        }
        for query in [
            "kind=",
            "kind=agents",
            "kind=agent,",
            "kind=agent, owner",
            "kind=Agent",
            "kind=agent&kind=owner",
            "kind[]=agent",
            "limit=",
            "limit=0",
            "limit=1001",
            "limit=-1",
            "limit=%2B1",
            "limit=ten",
            "limit=1&limit=1",
            "limit=99999999999999999999999",
            "other=1",
            "agent",
        ] {
            assert_eq!(Wanted::of(query), None, "{query}");
        }
    }

    fn stop(target: Target, at_ms: u64, lifted: bool) -> (Target, Arc<Stop>) {
        let stop = Stop {
            target: target.clone(),
            at_ms,
            by: "ann".to_owned(),
            why: String::new(),
            until_ms: None,
            lift_asked: None,
            lifted: lifted.then(|| ("bob".to_owned(), at_ms)),
        };
        (target, Arc::new(stop))
    }

    #[test]
    fn what_stands_comes_first_then_everything_then_what_is_new() {
        let agent = |name: &str| Target::Agent(name.to_owned());
        let mut rights = Rights::default();
        rights.stops.extend([
            stop(agent("lifted"), 90, true),
            stop(agent("old"), 10, false),
            stop(Target::Key("key".to_owned()), 40, false),
            stop(agent("new"), 50, false),
            stop(Target::Everything, 5, false),
        ]);
        let told = |query: &str| {
            let told = Wanted::of(query).unwrap().of_rights(&rights);
            let name = |named: Named| {
                let texts = [named.agent, named.key].into_iter().flatten();
                texts.collect::<String>()
            };
            let names = told.stops.into_iter().map(|stop| name(stop.target));
            (names.collect::<Vec<_>>(), told.more)
        };
        let (names, more) = told("");
        assert_eq!(names, ["", "new", "key", "old", "lifted"]);
        assert_eq!(more, 0);
        let (names, more) = told("limit=2");
        assert_eq!(names, ["", "new"]);
        assert_eq!(more, 3);
        let (names, more) = told("kind=agent,key&limit=3");
        assert_eq!(names, ["new", "key", "old"]);
        assert_eq!(more, 1);
        assert_eq!(told("kind=token"), (Vec::new(), 0));
    }
}
