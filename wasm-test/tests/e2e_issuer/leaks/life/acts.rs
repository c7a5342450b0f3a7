//! What is got by something else: sessions, delegations, refresh tokens; and what waits.

use std::time::Duration;

use serde_json::{Value, json};
use wasm_test::client::Call;
use wasm_test::system::AGENT;
use wasm_test::upstream::REPORT;

use super::{BY_KEY, BY_SVID, CLIENT, DELEGATION, Life, NOTE};
use crate::grants::CHILD;
use crate::judging::{ACCESS, GRANT, JWT};
use crate::visitor::{answer, http};
use reqwest::Method;

impl Life<'_> {
    /// A session, a batch in it, and a delegation that a child uses.
    pub async fn passes_on(&mut self) {
        let (svid, issuer) = (self.svid(AGENT), self.system.issuer());
        let form = [
            ("grant_type", GRANT),
            ("subject_token", &*svid),
            ("subject_token_type", JWT),
            ("audience", &*issuer),
        ];
        let got = self.token("a session", &form, true).await;
        let session = got["access_token"].as_str().unwrap().to_owned();
        self.at_the_edge("GET", REPORT, &session, 401).await;
        let url = self.url("/api/v1/capabilities");
        let proof = self.proof("POST", &url, Some(&session));
        let elements = [
            self.agent.details("GET", REPORT)[0].clone(),
            self.agent.details("GET", "/secret.txt")[0].clone(),
        ];
        let request = http().post(&url).header("dpop", proof);
        let request = request.header("authorization", format!("DPoP {session}"));
        let request = request.json(&json!({ "authorization_details": elements }));
        let got = answer(request).await;
        let token = got.json()["capabilities"][0]["access_token"]
            .as_str()
            .unwrap()
            .to_owned();
        self.secrets.add("a token of a batch", &token);
        self.told("a batch", &got, std::slice::from_ref(&token));

        let element = json!([{
            "type": "delegation", "delegate": CHILD, "actions": ["GET"],
            "locations": [self.agent.url("/files/*")],
        }])
        .to_string();
        let svid = self.svid(AGENT);
        let form = [
            ("grant_type", GRANT),
            ("subject_token", &*svid),
            ("subject_token_type", JWT),
            ("requested_token_type", DELEGATION),
            ("authorization_details", &*element),
        ];
        let got = self.token("a delegation", &form, true).await;
        let delegation = got["access_token"].as_str().unwrap().to_owned();
        let details = self.details("GET", REPORT);
        for (agent, wanted) in [(CHILD, true), (AGENT, false)] {
            let svid = self.svid(agent);
            let form = [
                ("grant_type", GRANT),
                ("subject_token", &*delegation),
                ("subject_token_type", DELEGATION),
                ("actor_token", &*svid),
                ("actor_token_type", JWT),
                ("authorization_details", &*details),
            ];
            let got = self.token("by a delegation", &form, wanted).await;
            if let Some(token) = got["access_token"].as_str() {
                self.at_the_edge("GET", REPORT, token, 200).await;
            }
        }
        let details = self.details("GET", REPORT);
        let form = [
            ("grant_type", GRANT),
            ("subject_token", &*session),
            ("subject_token_type", ACCESS),
            ("authorization_details", &*details),
        ];
        self.token("in a session", &form, true).await;
    }

    pub async fn goes_on_by_refresh_tokens(&mut self) {
        let assertion = self.assertion();
        let details = self.details("GET", REPORT);
        let form = [
            ("grant_type", "client_credentials"),
            ("client_assertion_type", BY_KEY),
            ("client_assertion", &*assertion),
            ("authorization_details", &*details),
        ];
        let got = self.token("by a client's key", &form, true).await;
        self.token("by the same assertion", &form, false).await;
        let refresh = got["refresh_token"].as_str().unwrap().to_owned();
        for (what, good) in [
            ("by a refresh token", true),
            ("by the same refresh token", false),
        ] {
            let assertion = self.assertion();
            let form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", &*refresh),
                ("client_assertion_type", BY_KEY),
                ("client_assertion", &*assertion),
                ("authorization_details", &*details),
            ];
            let got = self.token(what, &form, good).await;
            assert_eq!(got["refresh_token"].is_string(), good);
        }
    }

    fn assertion(&mut self) -> String {
        let us = self.system.issuer();
        let claims = json!({ "iss": CLIENT, "sub": CLIENT, "aud": us });
        let assertion = self.given.client.svid_with("", &us, &claims, &json!({}));
        self.secrets.add("a client's assertion", &assertion);
        assertion
    }

    /// Held with its body, shown to a person, and let go.
    pub async fn is_held_with_a_body(&mut self) {
        let token = {
            let svid = self.svid(AGENT);
            let details = self.details("POST", NOTE);
            let form = [
                ("grant_type", GRANT),
                ("subject_token", &*svid),
                ("subject_token_type", JWT),
                ("authorization_details", &*details),
            ];
            let got = self.token("for what is held", &form, true).await;
            got["access_token"].as_str().unwrap().to_owned()
        };
        let proof = self.proof("POST", &self.agent.url(NOTE), Some(&token));
        let agent = self.agent.clone();
        let held = tokio::spawn(async move {
            let call = Call {
                method: "POST",
                path: NOTE,
                token: Some(&token),
                proof: Some(&proof),
                headers: &[("content-type", "text/plain")],
                body: b"read me".to_vec(),
            };
            agent.send(call).await.unwrap()
        });
        let mut approval = Value::Null;
        for _ in 0..200 {
            let all = self.api(Method::GET, "/api/v1/approvals", None, &[]).await;
            approval = all["approvals"][0].clone();
            if approval.is_object() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let text = |name: &str| approval[name].as_str().unwrap().to_owned();
        let (id, digest) = (text("id"), text("digest"));
        assert!(
            self.page(&format!("/approvals/{id}"))
                .await
                .contains("read me")
        );
        self.api(Method::GET, &format!("/api/v1/approvals/{id}"), None, &[])
            .await;
        let approve = self.form(&format!("/approvals/{id}/approve"), &[("digest", &digest)]);
        assert_eq!(self.ask("an approval", approve, &[]).await.status, 303);
        let got = held.await.unwrap();
        assert_eq!(got.status, 200, "{}", got.text());
        self.page(&format!("/approvals/{id}")).await;
        let status = http().get(self.url(&format!("/approvals/{id}/status")));
        self.ask("an approval's status", status, &[]).await;
        // What the upstream echoes is what came to it: neither token nor proof.
        self.told("what was held", &got, &[]);
    }

    /// Waits at the token endpoint, with a code and a body that the person sees.
    pub async fn waits_for_a_person(&mut self) {
        let mut details = self.agent.details("POST", NOTE);
        details[0]["content_digest"] = capability::b64::encode(&capability::sha256(b"see")).into();
        let (details, svid) = (details.to_string(), self.svid(AGENT));
        let body = capability::b64::encode(b"see");
        let form = [
            ("grant_type", GRANT),
            ("subject_token", &*svid),
            ("subject_token_type", JWT),
            ("authorization_details", &*details),
            ("completion_mode", "deferred"),
            ("writ_content", &*body),
            ("writ_content_type", "text/plain"),
        ];
        let (url, what) = (self.url("/oauth2/token"), "a token that waits");
        let proof = self.proof("POST", &url, None);
        let request = http().post(&url).header("dpop", proof).form(&form);
        let got = self.ask(what, request, &["deferral_code"]).await;
        let code = got.json()["deferral_code"].as_str().unwrap().to_owned();
        let svid = self.svid(AGENT);
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:deferred"),
            ("deferral_code", &*code),
            ("subject_token", &*svid),
            ("subject_token_type", JWT),
        ];
        // Nobody has decided, and then it is asked too soon.
        for _ in 0..2 {
            let got = self.token("by a code", &form, false).await;
            assert!(
                ["authorization_pending", "slow_down"].contains(&got["error"].as_str().unwrap())
            );
        }
        let id = got.json()["approval_id"].as_str().unwrap().to_owned();
        assert!(self.page(&format!("/approvals/{id}")).await.contains("see"));
    }

    pub async fn asks_about_tokens(&mut self) {
        let svid = self.svid(AGENT);
        let details = self.details("GET", REPORT);
        let form = [
            ("grant_type", GRANT),
            ("subject_token", &*svid),
            ("subject_token_type", JWT),
            ("authorization_details", &*details),
        ];
        let got = self.token("for what is asked about", &form, true).await;
        let token = got["access_token"].as_str().unwrap().to_owned();
        for endpoint in ["introspect", "revoke", "introspect"] {
            let svid = self.svid(AGENT);
            let form = [
                ("token", &*token),
                ("client_assertion_type", BY_SVID),
                ("client_assertion", &*svid),
            ];
            let request = http()
                .post(self.url(&format!("/oauth2/{endpoint}")))
                .form(&form);
            let got = self.ask(endpoint, request, &[]).await;
            assert_eq!(got.status, 200, "{endpoint}: {}", got.text());
        }
        self.at_the_edge("GET", REPORT, &token, 401).await;
        // Nobody asks, and is told nothing.
        let form = [("token", &*token)];
        let nobody = http().post(self.url("/oauth2/introspect")).form(&form);
        assert_eq!(
            self.ask("a question of nobody's", nobody, &[]).await.status,
            401
        );
    }
}
