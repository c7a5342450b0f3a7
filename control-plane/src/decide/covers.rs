//! Whether a request is the action that a token was issued for, by our own record.

use super::facts::body_digest;
use crate::config::Site;
use capability::reason::Reason;
use capability::rpc::{self, Call, Protocol};
use capability::same_bytes;
use capability::url::{Origin, Target};
use decision_api::Question;
use ledger::model::ActionRecord;

/// Whether the action we recorded at issue is the request, by the one shared
/// normaliser. The filter has checked it too; this is our own record. The origin
/// is the configured one of the question's authority: an action of another never
/// covers it.
///
/// Of a message the filter says what it has read, and only what is what our record has
/// counts; where the body itself is here, `body`, it is read anew.
///
/// # Errors
/// The reason that it is not.
pub(super) fn covers(
    action: &ActionRecord,
    question: &Question,
    body: Option<&[u8]>,
    sites: impl Iterator<Item = Site>,
) -> Result<(), Reason> {
    let recorded = capability::action::Action::from_details(&crate::state::element(action));
    let mut origins = sites.filter_map(|site| Origin::parse(&site.origin).ok());
    let asked = origins.find(|origin| origin.authority() == question.authority);
    let (Ok(recorded), Some(origin)) = (recorded, asked) else {
        return Err(Reason::ActionMismatch);
    };
    let target = Target::request(&origin, question.path.as_bytes());
    if !target.is_ok_and(|target| recorded.covers(&question.method, &target)) {
        return Err(Reason::ActionMismatch);
    }
    let read = body_digest(question);
    let Some(call) = recorded.call() else {
        // A body that was not read here is none that a digest allows.
        let wanted = recorded.content_digest();
        let fits = wanted.is_none_or(|it| read.is_some_and(|read| same_bytes(&it, &read)));
        return fits.then_some(()).ok_or(Reason::BodyMismatch);
    };
    let told = question.body.as_ref().filter(|_| read.is_some());
    let told = told.ok_or(Reason::BodyMismatch)?;
    if !rpc::is_json(&question.content_type, &question.content_encoding) {
        return Err(Reason::ActionMismatch);
    }
    let told = told.message.as_ref().and_then(message);
    let told = told.ok_or(Reason::ActionMismatch)?;
    call.covers(&told)?;
    match body {
        Some(body) if Call::read(call.protocol(), body) != Some(told) => {
            Err(Reason::ActionMismatch)
        }
        _ => Ok(()),
    }
}

/// A message as the filter tells it, where one can be as it says.
fn message(told: &decision_api::Message) -> Option<Call> {
    let mut all = Protocol::ALL.into_iter();
    let protocol = all.find(|it| it.kind() == told.r#type)?;
    let digest = match told.arguments_digest.as_slice() {
        [] => None,
        digest => Some(digest.try_into().ok()?),
    };
    Call::new(protocol, &told.method, told.name.as_deref(), digest).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_covers_a_request_at_its_own_origin_alone() {
        let site = |name: &str, origin: &str| Site {
            name: name.to_owned(),
            origin: origin.to_owned(),
            resource: origin.to_owned(),
        };
        let sites = [
            site("", "http://a.example:8400"),
            site("b", "https://b.example"),
        ];
        let asked = |location: &str, method: &str, authority: &str, path: &str| {
            let action = ActionRecord {
                kind: "http_request".to_owned(),
                method: "GET".to_owned(),
                location: location.to_owned(),
                ..ActionRecord::default()
            };
            let question = Question {
                method: method.to_owned(),
                authority: authority.to_owned(),
                path: path.to_owned(),
                ..Question::default()
            };
            covers(&action, &question, None, sites.iter().cloned()) == Ok(())
        };
        let (a, b) = ("http://a.example:8400/x?y", "https://b.example/x?y");
        assert!(asked(a, "GET", "a.example:8400", "/x?y"));
        assert!(asked(b, "GET", "b.example", "/x?y"));
        for (location, method, authority, path) in [
            (a, "GET", "b.example", "/x?y"),
            (b, "GET", "a.example:8400", "/x?y"),
            (a, "GET", "a.example", "/x?y"),
            (a, "GET", "", "/x?y"),
            (a, "POST", "a.example:8400", "/x?y"),
            (a, "GET", "a.example:8400", "/x?z"),
            // An origin that is none of ours covers nothing, whoever recorded it.
            ("https://c.example/x?y", "GET", "c.example", "/x?y"),
            ("http://b.example/x?y", "GET", "b.example", "/x?y"),
        ] {
            assert!(
                !asked(location, method, authority, path),
                "{location}: {method} {authority}{path}"
            );
        }
    }

    #[test]
    fn an_action_with_a_digest_covers_that_body_and_none_that_was_not_read() {
        let site = Site {
            name: String::new(),
            origin: "http://a.example".to_owned(),
            resource: "http://a.example".to_owned(),
        };
        let digest = |body: &[u8]| capability::sha256(body);
        let asked = |bound: Option<&[u8]>, body: Option<&[u8]>| {
            let action = ActionRecord {
                kind: "http_request".to_owned(),
                method: "POST".to_owned(),
                location: "http://a.example/x".to_owned(),
                content_digest: bound.map(|body| capability::b64::encode(&digest(body))),
                ..ActionRecord::default()
            };
            let question = Question {
                method: "POST".to_owned(),
                authority: "a.example".to_owned(),
                path: "/x".to_owned(),
                body: body.map(|body| decision_api::ReadBody {
                    digest: digest(body).to_vec(),
                    ..decision_api::ReadBody::default()
                }),
                ..Question::default()
            };
            covers(&action, &question, None, std::iter::once(site.clone()))
        };
        let other = Err(Reason::BodyMismatch);
        assert_eq!(asked(Some(b"1"), Some(b"1")), Ok(()));
        assert_eq!(asked(Some(b"1"), Some(b"2")), other);
        assert_eq!(asked(Some(b"1"), None), other);
        assert_eq!(asked(Some(b""), None), other, "not even of none at all");
        assert_eq!(asked(None, Some(b"2")), Ok(()));
        assert_eq!(asked(None, None), Ok(()));
    }

    /// What the filter says that a message is, and what the record says that it may be.
    #[test]
    fn a_message_is_what_the_record_says_or_it_is_refused() {
        let site = Site {
            name: String::new(),
            origin: "http://a.example".to_owned(),
            resource: "http://a.example".to_owned(),
        };
        let action = |change: fn(&mut ActionRecord)| {
            let mut action = ActionRecord {
                kind: "mcp_request".to_owned(),
                method: "tools/call".to_owned(),
                location: "http://a.example/mcp".to_owned(),
                name: Some("add".to_owned()),
                ..ActionRecord::default()
            };
            change(&mut action);
            action
        };
        const BODY: &str =
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add"}}"#;
        const OTHER: &str =
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"sub"}}"#;
        let told = |change: &dyn Fn(&mut Question)| {
            let mut question = Question {
                method: "POST".to_owned(),
                authority: "a.example".to_owned(),
                path: "/mcp".to_owned(),
                content_type: "application/json".to_owned(),
                body: Some(decision_api::ReadBody {
                    digest: vec![1; 32],
                    message: Some(decision_api::Message {
                        r#type: "mcp_request".to_owned(),
                        method: "tools/call".to_owned(),
                        name: Some("add".to_owned()),
                        arguments_digest: capability::rpc::digest(None).unwrap().to_vec(),
                    }),
                    ..decision_api::ReadBody::default()
                }),
                ..Question::default()
            };
            change(&mut question);
            question
        };
        let set = |change: &dyn Fn(&mut decision_api::Message)| {
            told(&|question| {
                change(question.body.as_mut().unwrap().message.as_mut().unwrap());
            })
        };
        let plain = action(|_| {});
        let bound = action(|it| it.arguments_digest = Some(capability::b64::encode(&[7; 32])));
        let (other, body) = (Err(Reason::ActionMismatch), Err(Reason::BodyMismatch));
        let table = [
            ("as recorded", &plain, told(&|_| {}), None, Ok(())),
            ("read anew", &plain, told(&|_| {}), Some(BODY), Ok(())),
            (
                "another than told",
                &plain,
                told(&|_| {}),
                Some(OTHER),
                other,
            ),
            (
                "GET",
                &plain,
                told(&|it| it.method = "GET".to_owned()),
                None,
                other,
            ),
            ("unread", &plain, told(&|it| it.body = None), None, body),
            (
                "no message",
                &plain,
                told(&|it| it.body.as_mut().unwrap().message = None),
                None,
                other,
            ),
            (
                "no JSON",
                &plain,
                told(&|it| it.content_type = "text/plain".to_owned()),
                None,
                other,
            ),
            (
                "an encoding",
                &plain,
                told(&|it| it.content_encoding = "identity".to_owned()),
                None,
                other,
            ),
            (
                "another name",
                &plain,
                set(&|it| it.name = Some("sub".to_owned())),
                None,
                other,
            ),
            ("no name", &plain, set(&|it| it.name = None), None, other),
            (
                "another method",
                &plain,
                set(&|it| it.method = "prompts/get".to_owned()),
                None,
                other,
            ),
            (
                "another protocol",
                &plain,
                set(&|it| it.r#type = "a2a_request".to_owned()),
                None,
                other,
            ),
            (
                "half a digest",
                &plain,
                set(&|it| it.arguments_digest.truncate(31)),
                None,
                other,
            ),
            ("other arguments", &bound, told(&|_| {}), None, body),
            (
                "these arguments",
                &bound,
                set(&|it| it.arguments_digest = vec![7; 32]),
                None,
                Ok(()),
            ),
            (
                "no digest",
                &bound,
                set(&|it| it.arguments_digest = Vec::new()),
                None,
                body,
            ),
        ];
        for (what, action, question, whole, wanted) in table {
            let sites = std::iter::once(site.clone());
            let said = covers(action, &question, whole.map(str::as_bytes), sites);
            assert_eq!(said, wanted, "{what}");
        }
    }
}
