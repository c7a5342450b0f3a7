//! The registry in the words and parts that its pages show.

use std::collections::BTreeMap;

use ledger::model::{AgentRecord, AgentState, Millis, Rights, Stop, Target};
use serde::Deserialize;

use super::text::{Shown, span, time_for_people};
use super::{Desk, Owners};

/// Agents on one page.
pub(super) const PAGE: usize = 50;
/// Stops on the page of an agent, those that stand first.
pub(super) const STOPS_MAX: usize = 50;
/// Letters of what is looked for.
const TEXT_MAX: usize = 256;

/// What of the registry is asked for.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    state: String,
    owner: String,
    text: String,
    page: String,
}

/// Where an agent stands, for people: one whose time is over gets nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Is(AgentState),
    Expired,
}

impl Standing {
    const ALL: [Self; 5] = [
        Self::Is(AgentState::Discovered),
        Self::Is(AgentState::Active),
        Self::Is(AgentState::Suspended),
        Self::Is(AgentState::Decommissioned),
        Self::Expired,
    ];

    fn of(record: &AgentRecord, now: Millis) -> Self {
        match record.state {
            AgentState::Active if !record.is_active(now) => Self::Expired,
            state => Self::Is(state),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Is(state) => state.as_str(),
            Self::Expired => "expired",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Is(AgentState::Discovered) => "Discovered",
            Self::Is(AgentState::Active) => "Active",
            Self::Is(AgentState::Suspended) => "Suspended",
            Self::Is(AgentState::Decommissioned) => "Decommissioned",
            Self::Expired => "Active, but its time is over",
        }
    }
}

/// One agent of the list.
pub(super) struct Row {
    pub(super) path: String,
    pub(super) agent: Shown,
    pub(super) owner: Option<Shown>,
    /// Whether it has an owner that is none any more.
    pub(super) is_owner_gone: bool,
    pub(super) purpose: Option<Shown>,
    pub(super) environment: Option<Shown>,
    pub(super) state: &'static str,
    pub(super) label: &'static str,
    pub(super) seen: String,
    pub(super) ends: Option<String>,
}

/// A state that can be asked for.
pub(super) struct Choice {
    pub(super) word: &'static str,
    pub(super) label: &'static str,
    pub(super) is_chosen: bool,
}

/// A page of the list.
pub(super) struct List {
    pub(super) rows: Vec<Row>,
    pub(super) choices: Vec<Choice>,
    pub(super) owner: String,
    pub(super) text: String,
    /// Whether anything was asked for but all.
    pub(super) is_filtered: bool,
    /// How many there are of what was asked for, and the first and the last shown.
    pub(super) all: usize,
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

/// One that is in the registry, or has asked without being in it.
#[derive(Clone, Copy)]
enum Entry<'r> {
    Known(&'r AgentRecord),
    Stranger,
}

impl Entry<'_> {
    fn standing(self, now: Millis) -> Standing {
        match self {
            Self::Known(record) => Standing::of(record, now),
            Self::Stranger => Standing::Is(AgentState::Discovered),
        }
    }

    fn has_owner(self, owner: &str) -> bool {
        owner.is_empty() || matches!(self, Self::Known(record) if record.owner == owner)
    }

    /// Whether the text, in lower case, is somewhere in it.
    fn has(self, agent: &str, text: &str) -> bool {
        let within = |it: &str| it.to_lowercase().contains(text);
        let known = |record: &AgentRecord| {
            within(&record.owner) || within(&record.purpose) || within(&record.environment)
        };
        text.is_empty() || within(agent) || matches!(self, Self::Known(record) if known(record))
    }
}

/// A page of what was asked for.
///
/// # Errors
/// What is wrong with what is asked for.
pub(super) fn list(desk: &dyn Desk, asked: &Asked) -> Result<List, &'static str> {
    let (now, rights, strangers) = (desk.now_ms(), desk.rights(), desk.discovered());
    let state = match asked.state.as_str() {
        "" => None,
        word => {
            let known = Standing::ALL.into_iter().find(|it| it.word() == word);
            Some(known.ok_or("`state` is not one that agents can have.")?)
        }
    };
    let page = match asked.page.as_str() {
        "" => 1,
        page => {
            let page = page.parse::<usize>().ok().filter(|page| *page > 0);
            page.ok_or("`page` is not a number from 1 on.")?
        }
    };
    let texts = [&asked.owner, &asked.text];
    if texts.into_iter().any(|it| it.chars().count() > TEXT_MAX) {
        return Err("`owner` or `text` is longer than 256 letters.");
    }
    let known = rights.agents.values();
    let known = known.map(|record| (record.agent.as_str(), Entry::Known(record)));
    let others = strangers.iter();
    let others = others.map(|(agent, _)| (agent.as_str(), Entry::Stranger));
    let mut all: BTreeMap<&str, Entry<'_>> = others.collect();
    all.extend(known);
    let text = asked.text.trim().to_lowercase();
    let owner = asked.owner.trim();
    let found: Vec<(&str, Entry<'_>)> = all
        .into_iter()
        .filter(|(_, entry)| state.is_none_or(|state| entry.standing(now) == state))
        .filter(|(agent, entry)| entry.has_owner(owner) && entry.has(agent, &text))
        .collect();
    let from = page.saturating_sub(1).saturating_mul(PAGE);
    let owners = desk.owners();
    let shown = found.iter().skip(from).take(PAGE);
    let rows: Vec<Row> = shown
        .map(|(agent, entry)| row(desk, &owners, agent, *entry, now))
        .collect();
    let last = from.saturating_add(rows.len());
    let chosen = |it: Standing| Choice {
        word: it.word(),
        label: it.label(),
        is_chosen: state == Some(it),
    };
    Ok(List {
        all: found.len(),
        first: from.saturating_add(1),
        last,
        before: (page > 1).then(|| asked.at(page.saturating_sub(1))),
        after: (last < found.len()).then(|| asked.at(page.saturating_add(1))),
        rows,
        choices: Standing::ALL.into_iter().map(chosen).collect(),
        owner: owner.to_owned(),
        is_filtered: state.is_some() || !owner.is_empty() || !text.is_empty(),
        text: asked.text.trim().to_owned(),
    })
}

impl Asked {
    /// Where another page of the same is.
    fn at(&self, page: usize) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let parts = [
            ("state", &self.state),
            ("owner", &self.owner),
            ("text", &self.text),
        ];
        for (name, value) in parts.into_iter().filter(|(_, value)| !value.is_empty()) {
            query.append_pair(name, value);
        }
        query.append_pair("page", &page.to_string());
        format!("/agents?{}", query.finish())
    }
}

/// Where the page of an agent is.
pub(super) fn path_of(agent: &str) -> String {
    // A SPIFFE ID has nothing that is written otherwise in a path than in a query.
    let encoded: String = form_urlencoded::byte_serialize(agent.as_bytes()).collect();
    format!("/agents/{encoded}")
}

/// When it was last seen, and how long ago that is.
fn seen(desk: &dyn Desk, agent: &str, now: Millis) -> String {
    match desk.last_seen(agent) {
        Some(at) => {
            let ago = span(now.saturating_sub(at));
            format!("{}, {ago} ago", time_for_people(at))
        }
        None => "never, as far as is known".to_owned(),
    }
}

fn shown(text: &str) -> Option<Shown> {
    Some(Shown::text(text)).filter(|it| !it.is_empty())
}

fn row(desk: &dyn Desk, owners: &Owners, agent: &str, entry: Entry<'_>, now: Millis) -> Row {
    let standing = entry.standing(now);
    let record = match entry {
        Entry::Known(record) => Some(record),
        Entry::Stranger => None,
    };
    Row {
        path: path_of(agent),
        agent: Shown::text(agent),
        owner: record.and_then(|it| shown(&it.owner)),
        is_owner_gone: record.is_some_and(|it| !owners.contains_key(&it.owner)),
        purpose: record.and_then(|it| shown(&it.purpose)),
        environment: record.and_then(|it| shown(&it.environment)),
        state: standing.word(),
        label: standing.label(),
        seen: seen(desk, agent, now),
        ends: record.and_then(|it| it.expires_ms).map(time_for_people),
    }
}

/// A stop that covers an agent.
pub(super) struct StopShown {
    pub(super) stands: bool,
    pub(super) what: String,
    pub(super) user: Option<Shown>,
    pub(super) why: Option<Shown>,
    pub(super) by: Shown,
    pub(super) at: String,
    pub(super) lifted: Option<(Shown, String)>,
}

/// One agent, all of it.
pub(super) struct Agent {
    pub(super) row: Row,
    /// Where its owner is found.
    pub(super) contact: Option<Shown>,
    pub(super) state: AgentState,
    pub(super) is_registered: bool,
    pub(super) why: Option<Shown>,
    pub(super) created: String,
    pub(super) changed: Option<(Shown, String)>,
    /// When its record last changed, by which a form tells; 0 without a record.
    pub(super) changed_ms: Millis,
    pub(super) stops: Vec<StopShown>,
    pub(super) stops_more: usize,
}

/// What may be made of where an agent stands.
pub(super) struct Change {
    pub(super) to: AgentState,
    pub(super) word: &'static str,
    /// What the button says.
    pub(super) verb: &'static str,
    pub(super) title: &'static str,
    pub(super) text: &'static str,
    pub(super) is_final: bool,
}

impl Agent {
    /// Where it may go from where it stands.
    pub(super) fn changes(&self) -> Vec<Change> {
        let all = [
            AgentState::Active,
            AgentState::Suspended,
            AgentState::Decommissioned,
        ];
        let may = |to: &AgentState| *to != self.state && self.state.may_become(*to);
        let change = |to| {
            let (verb, title, text) = match to {
                AgentState::Active if self.state == AgentState::Discovered => (
                    "Let it act",
                    "Let this agent act?",
                    "It gets tokens for what policy allows, until it is suspended.",
                ),
                AgentState::Active => (
                    "Reactivate",
                    "Reactivate this agent?",
                    "It gets tokens again. What it had before it was suspended stays void.",
                ),
                AgentState::Decommissioned => (
                    "Decommission",
                    "Decommission this agent?",
                    "It gets nothing any more, at once and for good: what it has is void, and it can never be active again.",
                ),
                _ => (
                    "Suspend",
                    "Suspend this agent?",
                    "It gets nothing until it is active again. At once, and for good, what it has is void: its tokens, grants and approvals.",
                ),
            };
            Change {
                to,
                word: to.as_str(),
                verb,
                title,
                text,
                is_final: to == AgentState::Decommissioned,
            }
        };
        all.into_iter().filter(may).map(change).collect()
    }
}

/// One agent, where there is one.
pub(super) fn one(desk: &dyn Desk, id: &str) -> Option<Agent> {
    let (now, rights) = (desk.now_ms(), desk.rights());
    let (entry, created) = match rights.agent(id) {
        Some(record) => (Entry::Known(record), record.created_ms),
        None => {
            let strangers = desk.discovered();
            let (_, at) = strangers.iter().find(|(agent, _)| agent == id)?;
            (Entry::Stranger, *at)
        }
    };
    let record = rights.agent(id);
    let owners = desk.owners();
    let contact = record.and_then(|it| owners.get(&it.owner)?.as_deref());
    let mut stops = covering(&rights, id, record);
    let stops_more = stops.len().saturating_sub(STOPS_MAX);
    stops.truncate(STOPS_MAX);
    Some(Agent {
        row: row(desk, &owners, id, entry, now),
        contact: contact.and_then(shown),
        state: record.map_or(AgentState::Discovered, |it| it.state),
        is_registered: record.is_some(),
        why: record.and_then(|it| shown(&it.why)),
        created: time_for_people(created),
        changed: record.map(|it| {
            let by = Shown::text(&it.changed_by);
            (by, time_for_people(it.changed_ms))
        }),
        changed_ms: record.map_or(0, |it| it.changed_ms),
        stops: stops.into_iter().map(stop_shown).collect(),
        stops_more,
    })
}

/// The stops that cover an agent as such, those that stand first and then the newest.
fn covering<'r>(rights: &'r Rights, id: &str, record: Option<&AgentRecord>) -> Vec<&'r Stop> {
    let covers = |target: &Target| match target {
        Target::Everything => true,
        Target::Agent(agent) | Target::Delegation { agent, .. } => agent == id,
        Target::Owner(owner) => record.is_some_and(|it| it.owner == *owner),
        Target::User(_) | Target::Key(_) | Target::Token(_) => false,
    };
    let all = rights.stops.values().map(AsRef::as_ref);
    let mut found: Vec<&Stop> = all.filter(|stop| covers(&stop.target)).collect();
    found.sort_by_key(|stop| (stop.lifted.is_some(), std::cmp::Reverse(stop.at_ms)));
    found
}

fn stop_shown(stop: &Stop) -> StopShown {
    let (what, user) = match &stop.target {
        Target::Everything => ("everything", None),
        Target::Owner(_) => ("all agents of its owner", None),
        Target::Delegation { user, .. } => ("what it does for a user", Some(user)),
        _ => ("this agent", None),
    };
    StopShown {
        stands: stop.lifted.is_none(),
        what: what.to_owned(),
        user: user.map(|it| Shown::text(&format!("{} of {}", it.subject, it.issuer))),
        why: shown(&stop.why),
        by: Shown::text(&stop.by),
        at: time_for_people(stop.at_ms),
        lifted: stop
            .lifted
            .as_ref()
            .map(|(by, at)| (Shown::text(by), time_for_people(*at))),
    }
}
