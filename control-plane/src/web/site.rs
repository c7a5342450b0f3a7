//! What every handler shares: the desk, the logins, and who is asking.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use capability::headers::SESSION_COOKIES;
use ledger::model::{Approval, ApprovalState, Hash};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::logins::{Kind, Session};
use super::models::standing;
use super::{Desk, DeskError, Logins, WebSettings};

/// The most that a POST's body may hold, in bytes.
pub const BODY_MAX: usize = 16 * 1024;
/// Event streams (open inboxes) at a time.
pub const STREAMS_MAX: usize = 256;

pub(super) struct Inner {
    pub(super) desk: Arc<dyn Desk>,
    pub(super) logins: Logins,
    pub(super) settings: WebSettings,
    pub(super) streams: Arc<Semaphore>,
    /// The OpenAPI document.
    pub(super) document: String,
    origin: String,
}

/// The handlers' state.
#[derive(Clone)]
pub(super) struct Site(Arc<Inner>);

impl std::ops::Deref for Site {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Whether a request is a person's doing, which keeps the session alive, or
/// the page's own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Person,
    Page,
}

impl Site {
    pub(super) fn new(desk: Arc<dyn Desk>, logins: Logins, settings: WebSettings) -> Self {
        let origin = origin_of(&settings.issuer);
        let document = crate::openapi::document(&settings.issuer);
        let document = serde_json::to_string(&document).unwrap_or_default();
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        Self(Arc::new(Inner {
            desk,
            logins,
            settings,
            streams,
            document,
            origin,
        }))
    }

    /// The session that the browser's cookie names, with its id.
    pub(super) fn browser(&self, headers: &HeaderMap, by: By) -> Option<(String, Session)> {
        let id = cookie(headers, self.cookie_name())?;
        let session =
            self.logins
                .session(id, Kind::Browser, by == By::Person, self.desk.now_ms())?;
        Some((id.to_owned(), session))
    }

    /// The session that `Authorization: Session` names, with its id.
    pub(super) fn command_line(&self, headers: &HeaderMap) -> Option<(String, Session)> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (value, None) = (values.next()?, values.next()) else {
            return None;
        };
        let id = value.to_str().ok()?.strip_prefix("Session ")?;
        let session = self
            .logins
            .session(id, Kind::CommandLine, true, self.desk.now_ms())?;
        Some((id.to_owned(), session))
    }

    fn cookie_name(&self) -> &'static str {
        // The edge takes cookies of these names from what it forwards.
        let [secure, plain] = SESSION_COOKIES;
        if self.settings.secure_cookies {
            secure
        } else {
            plain
        }
    }

    /// `Set-Cookie` for a session; an empty id takes the cookie away.
    pub(super) fn set_cookie(&self, id: &str) -> Option<HeaderValue> {
        let secure = if self.settings.secure_cookies {
            "; Secure"
        } else {
            ""
        };
        let gone = if id.is_empty() { "; Max-Age=0" } else { "" };
        let name = self.cookie_name();
        HeaderValue::from_str(&format!(
            "{name}={id}; Path=/; HttpOnly; SameSite=Strict{secure}{gone}"
        ))
        .ok()
    }

    /// Whether a state-changing request may come from where it says it does.
    ///
    /// A script sends neither header; a browser can't leave them out or set
    /// them. `Origin: null` is what browsers send for our own forms, because of
    /// `Referrer-Policy: no-referrer`; it counts only beside `same-origin`.
    pub(super) fn is_from_here(&self, headers: &HeaderMap) -> bool {
        let all = |name: &str| {
            headers
                .get_all(name)
                .iter()
                .map(HeaderValue::as_bytes)
                .collect::<Vec<_>>()
        };
        let site = all("sec-fetch-site");
        let own = site.as_slice() == [b"same-origin".as_slice()];
        if !(site.is_empty() || own || site.as_slice() == [b"none".as_slice()]) {
            return false;
        }
        match all("origin").as_slice() {
            [] => true,
            [b"null"] => own,
            [origin] => *origin == self.origin.as_bytes(),
            _ => false,
        }
    }

    /// Decides an approval as shown: `digest` is what the person saw, in hex.
    /// Asking again for what was decided already is fine and changes nothing.
    pub(super) async fn decide(
        &self,
        id: &str,
        digest: &str,
        approve: bool,
        session: &Session,
    ) -> Result<Approval, DeskError> {
        let approval = self.desk.get(id).ok_or(DeskError::NotFound)?;
        let shown = Hash::try_from(hex::decode(digest).unwrap_or_default())
            .map_err(|_| DeskError::Stale)?;
        if shown != approval.digest {
            return Err(DeskError::Stale);
        }
        let outcome = match standing(&approval, self.desk.now_ms()) {
            ApprovalState::Pending => self.desk.decide(id, shown, approve, &session.who).await,
            ended => Err(DeskError::NotPending(ended)),
        };
        match outcome {
            Err(DeskError::NotPending(ApprovalState::Approved | ApprovalState::Consumed))
                if approve => {}
            Err(DeskError::NotPending(ApprovalState::Denied)) if !approve => {}
            other => return other,
        }
        self.desk.get(id).ok_or(DeskError::NotFound)
    }

    /// How many approvals wait for somebody.
    pub(super) fn waiting(&self) -> usize {
        let now = self.desk.now_ms();
        self.desk
            .list()
            .iter()
            .filter(|approval| standing(approval, now) == ApprovalState::Pending)
            .count()
    }
}

/// Whether a form's token is the session's.
pub(super) fn csrf_matches(session: &Session, token: &str) -> bool {
    session.csrf.as_bytes().ct_eq(token.as_bytes()).into()
}

fn origin_of(issuer: &str) -> String {
    let uri = issuer.parse::<Uri>().unwrap_or_default();
    format!(
        "{}://{}",
        uri.scheme_str().unwrap_or_default(),
        uri.authority().map_or("", |a| a.as_str())
    )
    .to_ascii_lowercase()
}

/// The one cookie of a name. Two with different values (a neighbour on the
/// same host may have set one) are none.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut found = None;
    for header in headers.get_all(header::COOKIE) {
        for pair in header.to_str().ok()?.split(';') {
            let Some((key, value)) = pair.trim().split_once('=') else {
                continue;
            };
            if key == name && found.replace(value).is_some_and(|other| other != value) {
                return None;
            }
        }
    }
    found
}
