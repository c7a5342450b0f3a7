//! Everything that agents, clients and people do with secrets, once at least.

mod acts;

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use wasm_test::child::Child;
use wasm_test::client::{Agent, Answer, Call, DpopKey};
use wasm_test::system::{AGENT, System};
use wasm_test::upstream::{PAYROLL, REPORT};

use super::secrets::Secrets;
use super::{Said, ended};
use crate::evidence::{Authority, encode};
use crate::grants::CHILD;
use crate::judging::{GRANT, JWT};
use crate::visitor::{answer, cookies, http};

const IDP: &str = "https://idp.example";
const US: &str = "https://writ.example/users";
const CLIENT: &str = "billing";
const DELEGATION: &str = "urn:writ:params:oauth:token-type:delegation";
const BY_KEY: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const BY_SVID: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
/// A path whose body is read and judged by a person.
const NOTE: &str = "/echo/notes/a";

pub const ROUTES: &str = r#"
[[edge.route]]
name = "notes"
path_prefix = "/echo/notes"
upstream = "{upstream}"
body = "read"
"#;

const POLICY: &str = r#"
permit (principal is Writ::Agent, action, resource)
when { resource.path like "/files/*" || resource.path like "/echo/*" };
@id("notes-need-approval")
@approvers("platform")
@reason("Somebody has to have read it.")
forbid (principal, action, resource)
when { resource.path like "/echo/notes/*" }
unless { context.approvals.contains("notes-need-approval") };
"#;

/// What the system is given: an issuer of users, and a client, each with its key.
pub struct Given {
    idp: Authority,
    client: Authority,
    pub policy: PathBuf,
    pub config: String,
}

impl Given {
    pub fn new(dir: &Path) -> Given {
        let (idp, client) = (Authority::fresh(), Authority::fresh());
        let keys = |name: &str, key: &Authority| {
            let path = dir.join(name);
            let set = json!({ "keys": [key.client_jwk()] });
            std::fs::write(&path, set.to_string()).unwrap();
            path.display().to_string()
        };
        let policy = dir.join("policy.cedar");
        std::fs::write(&policy, POLICY).unwrap();
        let config = format!(
            r#"
[[agent]]
spiffe_id = "{AGENT}"
owner = "platform@example.com"
[[agent]]
spiffe_id = "{CHILD}"
owner = "platform@example.com"
[[client]]
client_id = "{CLIENT}"
agent = "{AGENT}"
keys = {client:?}
refresh_s = 3600
[[identity.issuer]]
issuer = "{IDP}"
keys = {idp:?}
[identity.issuer.users]
audience = "{US}"
"#,
            client = keys("client.json", &client),
            idp = keys("idp.json", &idp),
        );
        Given {
            idp,
            client,
            policy,
            config,
        }
    }
}

/// Who lives it.
pub struct Life<'s> {
    system: &'s System,
    given: Given,
    domain: Authority,
    agent: Agent,
    key: DpopKey,
    secrets: Secrets,
    said: Vec<Said>,
    /// A browser's cookie, and the token of its forms.
    cookie: String,
    csrf: String,
    /// A command line's session.
    session: String,
}

/// A text without the secrets that it hands out.
fn without(mut text: String, handed_out: &[String]) -> String {
    for secret in handed_out {
        text = text.replace(secret.as_str(), "(handed out)");
    }
    text
}

impl<'s> Life<'s> {
    pub async fn begin(system: &'s System, given: Given) -> Life<'s> {
        let agent = system.agent().await.unwrap();
        let mut life = Life {
            system,
            domain: Authority::of(&system.state_dir().join("data")),
            key: agent.key().clone(),
            agent,
            secrets: Secrets::default(),
            said: Vec::new(),
            cookie: String::new(),
            csrf: String::new(),
            session: String::new(),
            given,
        };
        let keys = [
            ("the client's key", life.given.client.private_jwk()),
            ("the user issuer's key", life.given.idp.private_jwk()),
        ];
        for (name, key) in keys {
            life.secrets.add(name, key["d"].as_str().unwrap());
        }
        life
    }

    /// All that was answered, and what must not be in it.
    pub fn end(self) -> (Vec<Said>, Secrets) {
        (self.said, self.secrets)
    }

    /// Sends it, and keeps what was said but for these members, which are secrets from now on.
    async fn ask(&mut self, place: &str, request: RequestBuilder, hands_out: &[&str]) -> Answer {
        let got = answer(request).await;
        let mut handed_out = Vec::new();
        let body = got.json();
        for member in hands_out {
            let found = body[member].as_str();
            let found = found.unwrap_or_else(|| panic!("{place}: {member} in {}", got.text()));
            // Of a link its fragment is the secret.
            let secret = found.rsplit_once('#').map_or(found, |(_, secret)| secret);
            self.secrets.add(&format!("{member} of {place}"), secret);
            handed_out.push(secret.to_owned());
        }
        self.told(place, &got, &handed_out);
        got
    }

    fn told(&mut self, place: &str, got: &Answer, handed_out: &[String]) {
        let headers = got.headers.iter();
        let headers = headers.map(|(name, value)| format!("{name}: {value}\n"));
        let text = headers.collect::<String>() + &got.text();
        self.said.push(Said::new(
            format!("the answer {} to {place}", got.status),
            without(text, handed_out),
        ));
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.system.issuer())
    }

    /// A proof, whose signature is a secret as any other.
    fn proof(&mut self, method: &str, url: &str, token: Option<&str>) -> String {
        let proof = self.key.proof(method, url, token);
        self.secrets.add("a proof", &proof);
        proof
    }

    fn svid(&mut self, agent: &str) -> String {
        let svid = self.domain.svid(agent, &self.system.issuer(), &json!({}));
        self.secrets.add("an SVID", &svid);
        svid
    }

    /// Asks at the token endpoint, and gets something or nothing.
    async fn token(&mut self, what: &str, form: &[(&str, &str)], wanted: bool) -> Value {
        let url = self.url("/oauth2/token");
        let proof = self.proof("POST", &url, None);
        let request = http().post(&url).header("dpop", proof).form(form);
        let hands_out: &[&str] = if wanted { &["access_token"] } else { &[] };
        let got = self.ask(what, request, hands_out).await;
        assert_eq!(got.status == 200, wanted, "{what}: {}", got.text());
        if let Some(refresh) = got.json()["refresh_token"].as_str() {
            self.secrets
                .add(&format!("the refresh token of {what}"), refresh);
            let last = self.said.last_mut().unwrap();
            last.text = without(std::mem::take(&mut last.text), &[refresh.to_owned()]);
        }
        got.json()
    }

    fn details(&self, method: &str, path: &str) -> String {
        self.agent.details(method, path).to_string()
    }

    async fn at_the_edge(&mut self, method: &str, path: &str, token: &str, wanted: u16) {
        let proof = self.proof(method, &self.agent.url(path), Some(token));
        let call = Call {
            method,
            path,
            token: Some(token),
            proof: Some(&proof),
            ..Call::default()
        };
        let got = self.agent.send(call).await.unwrap();
        assert_eq!(got.status, wanted, "{method} {path}: {}", got.text());
        self.told(&format!("{method} {path} at the edge"), &got, &[]);
    }

    pub async fn signs_in(&mut self) {
        let link = self.system.serve_ready().approver_login.clone();
        let (page, secret) = link.split_once('#').unwrap();
        self.secrets.add("the first login link", secret);
        let wrong = "a-wrong-login-secret-of-some-length";
        self.secrets.add("a wrong login secret", wrong);
        let got = self.ask(
            "a wrong login",
            http().post(page).form(&[("secret", wrong)]),
            &[],
        );
        assert_eq!(got.await.status, 401);
        let got = answer(http().post(page).form(&[("secret", secret)])).await;
        assert_eq!(got.status, 303, "{}", got.text());
        let cookie = cookies(&got)[0].split(';').next().unwrap().to_owned();
        let (_, id) = cookie.split_once('=').unwrap();
        self.secrets.add("a browser's session", id);
        self.told("a login", &got, &[id.to_owned()]);
        self.cookie = cookie;
        let page = self.page("/").await;
        let (_, rest) = page.split_once("name=\"csrf\" value=\"").unwrap();
        self.csrf = rest.split('"').next().unwrap().to_owned();

        let got = answer(self.form("/login-links", &[])).await;
        let page = got.text();
        let (_, rest) = page.split_once("/login#").unwrap();
        let secret = rest.split('<').next().unwrap().to_owned();
        self.secrets.add("a login link", &secret);
        self.told(
            "a page with a login link",
            &got,
            std::slice::from_ref(&secret),
        );
        let request = http().post(self.url("/api/v1/session"));
        let request = request.json(&json!({ "secret": secret }));
        let opened = self
            .ask("a command line's login", request, &["session"])
            .await;
        let session = opened.json()["session"].as_str().unwrap().to_owned();
        self.session = format!("Session {session}");
    }

    /// A page as a browser sees it; what it shows of the form's token is its own.
    async fn page(&mut self, path: &str) -> String {
        let request = http().get(self.url(path)).header("cookie", &self.cookie);
        let got = self.ask(&format!("GET {path}"), request, &[]).await;
        assert!(
            got.status == 200 || path.contains("nothing"),
            "{path}: {}",
            got.status
        );
        got.text()
    }

    /// A form of a page's, posted.
    fn form(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        let mut all = vec![("csrf", self.csrf.as_str())];
        all.extend_from_slice(fields);
        let request = http().post(self.url(path)).header("cookie", &self.cookie);
        request.header("origin", self.system.issuer()).form(&all)
    }

    async fn api(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Value>,
        gives: &[&str],
    ) -> Value {
        let mut request = http().request(method, self.url(path));
        request = request.header("authorization", &self.session);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let got = self.ask(path, request, gives).await;
        assert!(got.status < 300, "{path}: {}", got.text());
        got.json()
    }

    pub async fn asks_for_itself(&mut self) {
        let real = self.agent.svid().await.unwrap();
        self.secrets.add("an SVID of the Workload API", &real);
        let details = self.details("GET", REPORT);
        let mut form = vec![
            ("grant_type", GRANT),
            ("subject_token", &*real),
            ("subject_token_type", JWT),
            ("authorization_details", &*details),
        ];
        let got = self.token("an exchange", &form, true).await;
        let token = got["access_token"].as_str().unwrap().to_owned();
        // Cut, it is refused, and what is refused is not told either.
        let (cut, _) = token.split_at(token.len() - 4);
        self.at_the_edge("GET", REPORT, cut, 401).await;
        self.at_the_edge("GET", REPORT, &token, 200).await;
        self.at_the_edge("GET", REPORT, &token, 401).await;
        let other = self.token("another exchange", &form, true).await;
        let other = other["access_token"].as_str().unwrap().to_owned();
        self.at_the_edge("GET", "/files/other.txt", &other, 403)
            .await;

        let bad = [
            ("a cut SVID", real.split_at(real.len() - 4).0.to_owned()),
            (
                "one of nobody",
                Authority::fresh().svid(AGENT, &self.system.issuer(), &json!({})),
            ),
            (
                "one for others",
                self.domain.svid(AGENT, "https://x.example", &json!({})),
            ),
            (
                "no SVID",
                format!("{}.{}", encode(&[7; 32]), encode(&[8; 64])),
            ),
        ];
        for (what, bad) in &bad {
            self.secrets.add(what, bad);
            form[1].1 = bad;
            self.token(what, &form, false).await;
        }
        form[1].1 = &real;
        let secret = self.details("GET", "/secret.txt");
        form[3].1 = &secret;
        self.token("what policy refuses", &form, false).await;
        let twice = [form.clone(), form].concat();
        self.token("everything twice", &twice, false).await;
    }

    pub async fn asks_for_a_user(&mut self) {
        let claims = |aud: &str| json!({ "iss": IDP, "sub": "ann@example.com", "aud": aud });
        let details = self.details("GET", REPORT);
        for (audience, wanted) in [(US, true), ("https://x.example", false)] {
            let user = self
                .given
                .idp
                .svid_with("", US, &claims(audience), &json!({}));
            self.secrets.add("a user's token", &user);
            let svid = self.svid(AGENT);
            let form = [
                ("grant_type", GRANT),
                ("subject_token", &*user),
                ("subject_token_type", JWT),
                ("actor_token", &*svid),
                ("actor_token_type", JWT),
                ("authorization_details", &*details),
            ];
            let got = self.token("an exchange for a user", &form, wanted).await;
            if let Some(token) = got["access_token"].as_str() {
                self.at_the_edge("GET", REPORT, token, 200).await;
            }
        }
    }

    pub async fn administers(&mut self) {
        for path in ["session", "agents", "stops", "ledger"] {
            self.api(Method::GET, &format!("/api/v1/{path}"), None, &[])
                .await;
        }
        self.api(
            Method::POST,
            "/api/v1/login-links",
            Some(json!({})),
            &["url"],
        )
        .await;
        let suspended = json!({ "agent": CHILD, "state": "suspended", "why": "a test" });
        self.api(Method::PUT, "/api/v1/agents", Some(suspended), &[])
            .await;
        let key = json!({ "target": { "key": self.key.thumbprint() } });
        self.api(Method::POST, "/api/v1/stops", Some(key.clone()), &[])
            .await;
        let svid = self.svid(AGENT);
        let details = self.details("GET", REPORT);
        let form = [
            ("grant_type", GRANT),
            ("subject_token", &*svid),
            ("subject_token_type", JWT),
            ("authorization_details", &*details),
        ];
        self.token("with a stopped key", &form, false).await;
        self.api(Method::POST, "/api/v1/stops/lift", Some(key), &[])
            .await;
        self.api(Method::GET, "/api/openapi.json", None, &[]).await;
    }

    pub async fn looks_at_every_page(&mut self) {
        let one = format!("/agents/{}", AGENT.replace(':', "%3A").replace('/', "%2F"));
        let change = format!("{one}/change?to=suspended");
        let pages = [
            "/",
            "/approvals",
            "/approvals/list",
            "/agents",
            "/audit",
            "/proxies",
            "/login",
        ];
        for page in pages.into_iter().chain([&*one, &change, "/nothing"]) {
            self.page(page).await;
        }
        for path in [
            "/.well-known/jwks.json",
            "/.well-known/oauth-authorization-server",
            "/readyz",
        ] {
            let request = http().get(self.url(path));
            self.ask(path, request, &[]).await;
        }
        assert_eq!(
            self.ask("a logout", self.form("/logout", &[]), &[])
                .await
                .status,
            303
        );
    }

    /// What an agent does that knows nothing of any of this; the sidecar's log.
    pub async fn has_a_sidecar(&mut self, dir: &Path) -> PathBuf {
        let ready = dir.join("ready");
        let mut command = self.system.writ();
        command.env("WRIT_LOG", "trace");
        command.args(["sidecar", "--listen", "127.0.0.1:0", "--target"]);
        command
            .arg(self.system.origin())
            .arg("--ready-file")
            .arg(&ready);
        let mut child =
            Child::spawn("the sidecar", &mut command, &dir.join("sidecar.log")).unwrap();
        while !ready.exists() {
            child.still_running().unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let place = std::fs::read_to_string(&ready).unwrap();
        let place = place.lines().next().unwrap().to_owned();
        for (path, wanted) in [(REPORT, 200), ("/secret.txt", 403), (PAYROLL, 200)] {
            let request = http().get(format!("{place}{path}"));
            let request = request.header("authorization", "Bearer an-agent's-own-but-unneeded-one");
            let got = self
                .ask(&format!("{path} by the sidecar"), request, &[])
                .await;
            assert_eq!(got.status, wanted, "{path}: {}", got.text());
        }
        self.secrets.add(
            "what an agent sent its sidecar",
            "an-agent's-own-but-unneeded-one",
        );
        ended(child).await
    }
}
