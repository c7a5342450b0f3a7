//! What an agent may not do, or may only with a person's yes, it has no other do for it:
//! the edge asks policy about each agent of the chain.

use serde_json::json;
use wasm_test::client::{Agent, Answer, Approver, Verdict};
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::{PAYROLL, REPORT};

use crate::evidence::Authority;
use crate::grants::{AGENTS, CHILD, DELEGATION, token_of};
use crate::judging::{GRANT, JWT, issued};

/// Rules of the request alone, for the agent that passes on and not for its child, and one
/// the other way round.
const POLICY: &str = r#"
permit (principal is Writ::Agent, action, resource) when { resource.path like "/files/*" };
@id("ask-about-demo") @approvers("platform")
forbid (principal == Writ::Agent::"spiffe://writ.example/agent/demo", action, resource)
when { resource.path like "/files/restricted/*" } unless { context.approvals.contains("ask-about-demo") };
@id("not-by-demo")
forbid (principal == Writ::Agent::"spiffe://writ.example/agent/demo", action, resource)
when { context.phase == "request" && resource.path == "/files/notes.txt" };
"#;

struct World {
    system: System,
    parent: Agent,
    child: Agent,
    authority: Authority,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> World {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy.cedar");
        std::fs::write(&policy, POLICY).unwrap();
        let options = Options {
            extra_config: AGENTS.to_owned(),
            policy: Some(policy),
            hold_s: 1,
            ..Options::default()
        };
        let system = System::for_test(options).await.unwrap();
        let parent = system.agent().await.unwrap();
        let child = parent.with_fresh_key().unwrap();
        let authority = Authority::of(&system.data_dir());
        World {
            system,
            parent,
            child,
            authority,
            _dir: dir,
        }
    }

    fn svid(&self, agent: &str) -> String {
        let us = self.system.issuer();
        self.authority.svid(agent, &us, &json!({}))
    }

    async fn post(&self, who: &Agent, form: &[(&str, &str)]) -> String {
        let request = reqwest::Client::new()
            .post(format!("{}/oauth2/token", self.system.issuer()))
            .header("dpop", who.token_proof())
            .form(form);
        let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
        token_of(&issued("a token", &answer))
    }

    async fn delegation(&self) -> String {
        let element = json!([{
            "type": "delegation", "delegate": CHILD, "actions": ["GET"],
            "locations": [self.parent.url("/files/*")], "uses": 9,
        }]);
        let form = [
            ("grant_type", GRANT),
            ("subject_token", &self.svid(AGENT)),
            ("subject_token_type", JWT),
            ("requested_token_type", DELEGATION),
            ("authorization_details", &element.to_string()),
        ];
        self.post(&self.parent, &form).await
    }

    /// The child does this, for its parent or for itself.
    async fn calls(&self, delegation: Option<&str>, path: &str) -> Answer {
        let (own, details) = (self.svid(CHILD), self.child.details("GET", path));
        let details = details.to_string();
        let mut form = vec![("grant_type", GRANT), ("authorization_details", &details)];
        form.extend(match delegation {
            Some(delegation) => vec![
                ("subject_token", delegation),
                ("subject_token_type", DELEGATION),
                ("actor_token", &own),
                ("actor_token_type", JWT),
            ],
            None => vec![("subject_token", &*own), ("subject_token_type", JWT)],
        });
        let token = self.post(&self.child, &form).await;
        self.child.present("GET", path, &token).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_has_another_do_what_they_may_not_or_not_without_a_yes() {
    let world = World::start().await;
    let upstream = world.system.upstream().unwrap();
    let delegation = world.delegation().await;
    let delegated = Some(&*delegation);
    let own = world.calls(None, PAYROLL).await;
    assert_eq!(own.status, 200, "nothing is asked of it: {}", own.text());
    let free = world.calls(delegated, REPORT).await;
    assert_eq!(free.status, 200, "{}", free.text());

    let arrived = upstream.arrived();
    let never = world.calls(delegated, "/files/notes.txt").await;
    assert_eq!(never.reason(), "policy_denied", "{}", never.text());
    let held = world.calls(delegated, PAYROLL).await;
    assert_eq!(held.reason(), "approval_pending", "{}", held.text());
    assert_eq!(upstream.arrived(), arrived);
    let id = held.json()["approval_id"].as_str().unwrap().to_owned();
    let link = &world.system.serve_ready().approver_login;
    let approver = Approver::login(link).await.unwrap();
    let page = approver.page(&format!("/approvals/{id}")).await.unwrap();
    assert!(page.text().contains("ask-about-demo"), "{}", page.text());
    approver.decide(&id, Verdict::Approve).await.unwrap();
    let passed = world.calls(delegated, PAYROLL).await;
    assert_eq!(passed.status, 200, "{}", passed.text());
    let again = world.calls(delegated, PAYROLL).await;
    assert_eq!(again.reason(), "approval_pending", "{}", again.text());
    assert_eq!(upstream.arrived(), arrived + 1);
    world.system.stop().await;
}
