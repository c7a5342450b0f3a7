//! The templates, and how they become answers.

use askama::Template;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::assets::{Names, names};
use super::logins::Session;
use super::models::{Detail, Inbox};
use super::registry::{Agent, Change, List};
use super::site::Site;
use super::text::Shown;

/// What frames every page.
pub(super) struct Shell {
    pub(super) title: String,
    pub(super) here: &'static str,
    pub(super) signed: Option<Signed>,
    pub(super) dev_single_uid: bool,
    pub(super) warnings: Vec<Shown>,
    pub(super) assets: &'static Names,
    pub(super) waiting: usize,
    pub(super) go_on_to: Option<String>,
}

/// Who looks at it.
pub(super) struct Signed {
    pub(super) who: Shown,
    pub(super) csrf: String,
}

impl Shell {
    pub(super) fn new(
        site: &Site,
        session: Option<&Session>,
        here: &'static str,
        title: &str,
    ) -> Self {
        Self {
            title: title.to_owned(),
            here,
            signed: session.map(|s| Signed {
                who: Shown::text(&s.who),
                csrf: s.csrf.clone(),
            }),
            dev_single_uid: site.settings.dev_single_uid,
            // Who is not signed in learns nothing of this system.
            warnings: session.map_or_else(Vec::new, |_| {
                let warnings = site.desk.warnings();
                warnings.iter().map(|text| Shown::text(text)).collect()
            }),
            assets: names(),
            waiting: session.map_or(0, |_| site.waiting()),
            go_on_to: None,
        }
    }
}

#[derive(Template)]
#[template(path = "login.html")]
pub(super) struct LoginPage {
    pub(super) shell: Shell,
    pub(super) error: Option<String>,
    pub(super) next: String,
}

#[derive(Template)]
#[template(path = "message.html")]
pub(super) struct MessagePage {
    pub(super) shell: Shell,
    pub(super) text: String,
    pub(super) link: Option<(String, &'static str)>,
}

#[derive(Template)]
#[template(path = "overview.html")]
pub(super) struct OverviewPage {
    pub(super) shell: Shell,
    pub(super) issuer: String,
    pub(super) module: Option<String>,
    pub(super) connected: usize,
    pub(super) problems: usize,
    pub(super) entries: Vec<Entry>,
}

#[derive(Template)]
#[template(path = "link.html")]
pub(super) struct LinkPage {
    pub(super) shell: Shell,
    pub(super) link: String,
}

#[derive(Template)]
#[template(path = "audit.html")]
pub(super) struct AuditPage {
    pub(super) shell: Shell,
    pub(super) entries: Vec<Entry>,
}

/// One audit entry.
pub(super) struct Entry {
    pub(super) index: u64,
    pub(super) time: String,
    pub(super) kind: Shown,
    pub(super) summary: Shown,
}

#[derive(Template)]
#[template(path = "proxies.html")]
pub(super) struct ProxiesPage {
    pub(super) shell: Shell,
    pub(super) module: Option<String>,
    pub(super) proxies: Vec<Proxy>,
}

/// One proxy.
pub(super) struct Proxy {
    pub(super) id: Shown,
    pub(super) node: Shown,
    pub(super) connected: bool,
    pub(super) detail: Shown,
    pub(super) problem: Option<Shown>,
}

#[derive(Template)]
#[template(path = "inbox.html")]
pub(super) struct InboxPage {
    pub(super) shell: Shell,
    pub(super) inbox: Inbox,
}

#[derive(Template)]
#[template(path = "inbox_list.html")]
pub(super) struct InboxList {
    pub(super) inbox: Inbox,
}

#[derive(Template)]
#[template(path = "approval.html")]
pub(super) struct ApprovalPage {
    pub(super) shell: Shell,
    pub(super) csrf: String,
    pub(super) detail: Detail,
}

#[derive(Template)]
#[template(path = "agents.html")]
pub(super) struct AgentsPage {
    pub(super) shell: Shell,
    pub(super) list: List,
}

#[derive(Template)]
#[template(path = "agent.html")]
pub(super) struct AgentPage {
    pub(super) shell: Shell,
    pub(super) agent: Agent,
    pub(super) changes: Vec<Change>,
}

#[derive(Template)]
#[template(path = "change.html")]
pub(super) struct ChangePage {
    pub(super) shell: Shell,
    pub(super) csrf: String,
    pub(super) agent: Agent,
    pub(super) change: Change,
    /// The owners that one without an owner may be given, each as it is sent and as it is
    /// shown.
    pub(super) owners: Vec<(String, Shown)>,
}

/// Renders; a template that fails is our fault and shows nothing.
pub(super) fn html(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(page) => (
            status,
            [(header::CONTENT_TYPE, "text/html; charset=utf-8")],
            page,
        )
            .into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
