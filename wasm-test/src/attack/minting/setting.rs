//! A token endpoint that knows an issuer of users' tokens and a client with a key of its
//! own, and whoever can show it whatever there is to be shown.

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::Error;
use crate::attack::forge::{Key, random};
use crate::client::{Answer, DpopKey, http_client, now_s};
use crate::stage::Stage;
use crate::system::{AGENT, Options};
use crate::upstream::REPORT;

pub const CHILD: &str = "spiffe://writ.example/agent/child";
pub const OTHER: &str = "spiffe://writ.example/agent/other";
/// Who issues users' tokens.
pub const IDP: &str = "https://idp.example";
/// What users' tokens are made for.
pub const US: &str = "https://writ.example/users";
/// The name of the first agent's at that issuer.
pub const APP: &str = "crm-app";
/// The client that is the first agent.
pub const CLIENT: &str = "crm";
pub const USER: &str = "ann@example.com";

pub const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub const BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
pub const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
pub const ACCESS: &str = "urn:ietf:params:oauth:token-type:access_token";
pub const DELEGATION: &str = "urn:writ:params:oauth:token-type:delegation";
pub const BY_KEY: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
pub const BY_SVID: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";

/// The policy, below the repository's root.
const POLICY: &str = "wasm-test/src/attack/data/minting.cedar";

/// What signs JWTs.
pub struct Signer {
    key: Key,
    kid: String,
}

impl Signer {
    fn of(key: Key) -> Result<Signer, Error> {
        Ok(Signer {
            kid: key.public()?.thumbprint(),
            key,
        })
    }

    /// A JWT of five minutes with these claims, and header members, laid over; null takes
    /// one away.
    pub fn jwt(&self, claims: &Value, header: &Value) -> String {
        let head = json!({"alg": "ES256", "typ": "JWT", "kid": self.kid});
        let good = json!({"iat": now_s(), "exp": now_s() + 300, "jti": random()});
        self.key.seal(
            laid(&[&head, header]).to_string().as_bytes(),
            laid(&[&good, claims]).to_string().as_bytes(),
        )
    }

    fn set(&self) -> Result<String, Error> {
        let jwk = serde_json::to_value(self.key.public()?.to_jwk()).unwrap_or_default();
        let jwk = laid(&[
            &jwk,
            &json!({"kid": self.kid, "use": "sig", "alg": "ES256"}),
        ]);
        Ok(json!({ "keys": [jwk] }).to_string())
    }
}

/// Members laid over each other; null takes one away.
pub fn laid(all: &[&Value]) -> Value {
    let mut members = Map::new();
    for object in all.iter().filter_map(|it| it.as_object()) {
        members.extend(object.clone());
    }
    members.retain(|_, value| !value.is_null());
    Value::Object(members)
}

/// Who signs what is shown, and the config that believes them.
pub struct Signers {
    pub idp: Signer,
    pub client: Signer,
    config: String,
    _keys: TempDir,
}

impl Signers {
    pub fn new() -> Result<Signers, Error> {
        let keys = tempfile::tempdir().map_err(|it| Error::Setup(it.to_string()))?;
        let idp = Signer::of(Key::p256("users")?)?;
        let client = Signer::of(Key::p256("client")?)?;
        let mut places = Vec::new();
        for (name, signer) in [("idp.json", &idp), ("client.json", &client)] {
            let path = keys.path().join(name);
            std::fs::write(&path, signer.set()?).map_err(Error::file("write", &path))?;
            places.push(path.display().to_string());
        }
        let agents = [AGENT, CHILD, OTHER].map(|id| {
            format!("[[agent]]\nspiffe_id = \"{id}\"\nowner = \"platform@example.com\"\n")
        });
        let (users, own) = (places.first(), places.last());
        let config = format!(
            r#"{agents}
[[client]]
client_id = "{CLIENT}"
agent = "{AGENT}"
keys = {own:?}
refresh_s = 600
[[identity.issuer]]
issuer = "{IDP}"
keys = {users:?}
[identity.issuer.users]
audience = "{US}"
id_jag = true
[[identity.issuer.users.client]]
client_id = "{APP}"
agent = "{AGENT}"
[[identity.issuer.users.client]]
client_id = "other-app"
agent = "{OTHER}"
"#,
            agents = agents.concat(),
            own = own.map(String::as_str).unwrap_or_default(),
            users = users.map(String::as_str).unwrap_or_default(),
        );
        Ok(Signers {
            idp,
            client,
            config,
            _keys: keys,
        })
    }

    /// These options, with all that is needed here.
    pub fn options(&self, options: Options) -> Options {
        Options {
            policy: Some(crate::tools::root().join(POLICY)),
            extra_config: format!("{}\n{}", options.extra_config, self.config),
            ..options
        }
    }

    /// A user's ID token, with claims laid over.
    pub fn user(&self, claims: &Value) -> String {
        let good = json!({"iss": IDP, "sub": USER, "aud": US});
        self.idp.jwt(&laid(&[&good, claims]), &json!({}))
    }

    /// An ID-JAG for the client.
    pub fn id_jag(&self, issuer: &str) -> String {
        let claims = json!({"iss": IDP, "sub": USER, "aud": issuer, "client_id": CLIENT});
        self.idp.jwt(&claims, &json!({"typ": "oauth-id-jag+jwt"}))
    }

    /// An assertion of the client's.
    pub fn assertion(&self, issuer: &str) -> String {
        let claims = json!({"iss": CLIENT, "sub": CLIENT, "aud": issuer});
        self.client.jwt(&claims, &json!({}))
    }
}

/// A token endpoint, and who asks there.
pub struct Desk<'a> {
    pub stage: &'a Stage,
    pub signers: &'a Signers,
    svids: Signer,
    http: reqwest::Client,
}

/// One request for a token, which may be spoilt before it is sent.
#[derive(Clone)]
pub struct Ask {
    pub params: Vec<(String, String)>,
    pub proofs: Vec<String>,
}

impl Ask {
    pub fn of(params: &[(&str, &str)], proof: String) -> Ask {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Ask {
            params: params.iter().map(own).collect(),
            proofs: vec![proof],
        }
    }

    /// With this parameter in the place of what is there of its name.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Ask {
        self.params.retain(|(known, _)| known != name);
        self.also(name, value)
    }

    /// Without it.
    #[must_use]
    pub fn without(mut self, name: &str) -> Ask {
        self.params.retain(|(known, _)| known != name);
        self
    }

    /// With it beside what is there.
    #[must_use]
    pub fn also(mut self, name: &str, value: &str) -> Ask {
        self.params.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this proof.
    #[must_use]
    pub fn proven(mut self, proof: String) -> Ask {
        self.proofs = vec![proof];
        self
    }

    pub fn form(&self) -> Result<String, Error> {
        let mut url = reqwest::Url::parse("http://form/")
            .map_err(|problem| Error::Unexpected(problem.to_string()))?;
        url.query_pairs_mut().extend_pairs(&self.params);
        Ok(url.query().unwrap_or_default().to_owned())
    }
}

impl<'a> Desk<'a> {
    pub fn at(stage: &'a Stage, signers: &'a Signers) -> Result<Desk<'a>, Error> {
        let path = stage.system.state_dir().join("data/trust/jwt.key");
        Ok(Desk {
            stage,
            signers,
            svids: Signer::of(Key::from_pem(&path)?)?,
            http: http_client(),
        })
    }

    pub fn issuer(&self) -> String {
        self.stage.system.issuer()
    }

    pub fn endpoint(&self) -> String {
        format!("{}/oauth2/token", self.issuer())
    }

    pub fn key(&self) -> &DpopKey {
        self.stage.agent.key()
    }

    pub fn proof(&self) -> String {
        self.key().proof("POST", &self.endpoint(), None)
    }

    pub fn url(&self, path: &str) -> String {
        self.stage.agent.url(path)
    }

    pub fn svid(&self, agent: &str) -> String {
        let claims = json!({"sub": agent, "aud": [self.issuer()]});
        self.svids.jwt(&claims, &json!({}))
    }

    pub fn details(&self, method: &str, path: &str) -> String {
        self.stage.agent.details(method, path).to_string()
    }

    /// A good one of this agent, by its SVID.
    pub fn good(&self, agent: &str) -> Ask {
        let (svid, details) = (self.svid(agent), self.details("GET", REPORT));
        let params = [
            ("grant_type", EXCHANGE),
            ("subject_token", svid.as_str()),
            ("subject_token_type", JWT),
            ("authorization_details", details.as_str()),
        ];
        Ask::of(&params, self.proof())
    }

    /// The first agent asks for a session.
    pub fn for_session(&self) -> Ask {
        self.good(AGENT)
            .without("authorization_details")
            .with("audience", &self.issuer())
    }

    /// The first agent asks, by this token of this type, with its SVID beside it.
    pub fn acting(&self, token: &str, kind: &str) -> Ask {
        self.good(AGENT)
            .with("subject_token", token)
            .with("subject_token_type", kind)
            .with("actor_token", &self.svid(AGENT))
            .with("actor_token_type", JWT)
    }

    /// The client asks, by its own key.
    pub fn as_client(&self, assertion: &str) -> Ask {
        self.good(AGENT)
            .with("grant_type", "client_credentials")
            .without("subject_token")
            .without("subject_token_type")
            .with("client_assertion_type", BY_KEY)
            .with("client_assertion", assertion)
    }

    /// Whoever has this SVID passes on what the element says.
    pub fn delegating(&self, agent: &str, element: &Value) -> Ask {
        self.good(agent)
            .with("requested_token_type", DELEGATION)
            .with("authorization_details", &json!([element]).to_string())
    }

    /// This agent asks by this delegation.
    pub fn by(&self, delegation: &str, agent: &str) -> Ask {
        self.good(agent)
            .with("subject_token", delegation)
            .with("subject_token_type", DELEGATION)
            .with("actor_token", &self.svid(agent))
            .with("actor_token_type", JWT)
    }

    pub async fn send(&self, ask: &Ask) -> Result<Answer, Error> {
        let url = format!("{}/oauth2/token", self.stage.system.http_url());
        let form = "application/x-www-form-urlencoded";
        let mut request = self.http.post(&url).header("content-type", form);
        for proof in &ask.proofs {
            request = request.header("dpop", proof);
        }
        let request = request.body(ask.form()?);
        Answer::read(request.send().await.map_err(Error::http(&url))?).await
    }

    /// Sends one that is good: the JSON of the answer.
    pub async fn issued(&self, what: &str, ask: &Ask) -> Result<Value, Error> {
        let answer = self.send(ask).await?.expect(what, 200)?;
        not_stored(what, &answer)?;
        Ok(answer.json())
    }

    /// The same: the token.
    pub async fn token(&self, what: &str, ask: &Ask) -> Result<String, Error> {
        let body = self.issued(what, ask).await?;
        Ok(crate::stage::text_at(&body, "/access_token"))
    }

    /// Sends one that has to be refused with this status, `error` and reason, and brings no
    /// token.
    pub async fn refused(
        &self,
        what: &str,
        ask: &Ask,
        wanted: (u16, &str, &str),
    ) -> Result<(), Error> {
        is_refused(what, &self.send(ask).await?, wanted)
    }
}

/// A refusal of the token endpoint's.
pub fn is_refused(what: &str, answer: &Answer, wanted: (u16, &str, &str)) -> Result<(), Error> {
    let (error, reason) = (answer.oauth_error(), answer.reason());
    let got = (answer.status, error.as_str(), reason.as_str());
    let bare = answer.json().get("access_token").is_none();
    if got == wanted && bare {
        return not_stored(what, answer);
    }
    let text = answer.text();
    Err(Error::Unexpected(format!(
        "{what}: {got:?} instead of {wanted:?}: {text}"
    )))
}

/// RFC 6749, section 5.1: nothing on the way keeps it.
pub fn not_stored(what: &str, answer: &Answer) -> Result<(), Error> {
    let all = |wanted: &str| {
        let named = answer.headers.iter().filter(|(name, _)| name == wanted);
        named.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    let (control, pragma) = (all("cache-control"), all("pragma"));
    if control == ["no-store"] && pragma == ["no-cache"] {
        return Ok(());
    }
    Err(Error::Unexpected(format!(
        "{what}: cache-control {control:?}, pragma {pragma:?}"
    )))
}
