//! From a row to bytes, and what has to come of them.

use capability::gates::{self, RequestView};
use capability::{Portable, Reason};
use serde_json::Value;

use super::{Built, HEADERS_MAX, PATH, Run, Wanted, list, text, text_or};
use crate::Error;
use crate::attack::forge::{Key, long};
use crate::client::Answer;
use crate::raw::{field, message};

impl Run<'_> {
    /// What a row describes, with credentials of this moment.
    ///
    /// # Errors
    /// When there is no token for it.
    pub async fn build(&self, row: &Value) -> Result<Built, Error> {
        let none = Value::Null;
        let part = |name: &str| row.get(name).unwrap_or(&none);
        let (of_token, of_proof, request) = (part("token"), part("proof"), part("request"));
        let (key, bound) = match of_proof.get("key").and_then(Value::as_str) {
            Some("ed25519") => (Key::ed25519("agent"), Key::ed25519("agent")),
            Some(other) => (Key::p256(other)?, self.forger.agent.clone()),
            None => (self.forger.agent.clone(), self.forger.agent.clone()),
        };
        let issued = of_token.is_null();
        let token = match of_token.get("raw").and_then(Value::as_str) {
            Some(raw) => raw.to_owned(),
            None if issued => self.issue(&bound).await?,
            None => {
                let jkt = bound.public()?.thumbprint();
                self.forger.token(PATH, &jkt, of_token)?
            }
        };
        let proof = match of_proof.get("raw").and_then(Value::as_str) {
            Some(raw) => raw.to_owned(),
            None => self.forger.proof(&key, PATH, &token, of_proof)?,
        };
        let fill = |text: &str| {
            let text = text.replace("{token}", &token).replace("{proof}", &proof);
            long(&text).into_bytes()
        };
        let said = |name: &str, otherwise: &str| {
            let given = request.get(name).and_then(Value::as_str);
            fill(given.unwrap_or(otherwise))
        };
        let mut headers = vec![
            field("host", said("authority", self.stage.agent.authority())),
            field("authorization", said("authorization", "DPoP {token}")),
            field("dpop", said("dpop", "{proof}")),
        ];
        for gone in list(request, "without") {
            headers.retain(|(name, _)| Some(name.as_str()) != gone.as_str());
        }
        for more in list(request, "more") {
            if let (Some(name), Some(value)) = (more.get(0), more.get(1)) {
                let name = name.as_str().unwrap_or_default();
                headers.push(field(name, fill(value.as_str().unwrap_or_default())));
            }
        }
        let body = said("body", "");
        let chunked = headers.iter().any(|(name, _)| name == "transfer-encoding");
        if !body.is_empty() && !chunked {
            headers.push(field("content-length", body.len().to_string()));
        }
        Ok(Built {
            body,
            method: text_or(request, "method", "GET"),
            path: said("path", PATH),
            headers,
            token,
            issued,
            // What it is bound to, and can be used with.
            key: bound,
            seen: request.get("seen").and_then(Value::as_str).map(Into::into),
        })
    }

    /// A token for `GET PATH` bound to this key, by an exchange.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn issue(&self, key: &Key) -> Result<String, Error> {
        let proof = self.forger.exchange_proof(key, &Value::Null)?;
        let answer = self.exchange(&proof).await?.expect("an exchange", 200)?;
        Ok(text(&answer.json(), "access_token"))
    }

    pub(super) async fn exchange(&self, proof: &str) -> Result<Answer, Error> {
        let agent = &self.stage.agent;
        let details = agent.details("GET", PATH).to_string();
        agent
            .post_token(&agent.svid().await?, &details, proof)
            .await
    }

    /// What is sent.
    pub fn bytes(&self, built: &Built) -> Vec<u8> {
        let path = String::from_utf8_lossy(&built.path);
        let mut bytes = message(&built.method, &path, &built.headers);
        bytes.extend_from_slice(&built.body);
        bytes
    }

    pub(super) fn wanted(
        &mut self,
        row: &Value,
        built: &Built,
        bytes: &[u8],
    ) -> Result<Wanted, Error> {
        let statuses: Vec<u64> = list(row, "envoy")
            .iter()
            .filter_map(Value::as_u64)
            .collect();
        if !statuses.is_empty() {
            return Ok(Wanted::ByEnvoy(statuses));
        }
        if bytes.len() > HEADERS_MAX {
            return Ok(Wanted::ByEnvoy(vec![431]));
        }
        if built.headers.iter().any(|(name, _)| name.contains('_')) {
            return Ok(Wanted::ByEnvoy(vec![400]));
        }
        // The same bytes through the same crate, built natively.
        let native = self.native(built);
        let name = text(row, "name");
        let expect = text(row, "expect");
        let entry = row.get("authenticated") == Some(&Value::Bool(true));
        let natively = match &native {
            Ok(()) => "ok",
            Err((reason, _)) => reason.as_str(),
        };
        if expect != "native" && natively != expect {
            self.fault(&name, format!("natively it is {natively} and not {expect}"));
        }
        if row.get("refused").is_some() && native.is_ok() {
            self.fault(&name, "natively it passes");
        }
        let entry = match &native {
            Err((_, known)) if expect == "native" => *known,
            _ => entry,
        };
        match if expect == "native" {
            natively
        } else {
            &expect
        } {
            "ok" if built.issued => Ok(Wanted::Passes),
            "ok" => Ok(Wanted::NotIssued),
            word => match Reason::parse(word) {
                Some(reason) => Ok(Wanted::Refused { reason, entry }),
                None => Err(Error::Setup(format!("{name}: there is no reason {word}"))),
            },
        }
    }

    pub(super) fn native(&self, built: &Built) -> Result<(), (Reason, bool)> {
        let mut headers = vec![
            (b":method".to_vec(), built.method.clone().into_bytes()),
            (
                b":path".to_vec(),
                built.seen.as_ref().unwrap_or(&built.path).clone(),
            ),
        ];
        headers.extend(built.headers.iter().map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            let name = if name == "host" {
                ":authority".to_owned()
            } else {
                name
            };
            // Space around a value is no part of it (RFC 9112, section 5).
            (name.into_bytes(), value.trim_ascii().to_vec())
        }));
        let view = RequestView {
            headers: &headers,
            peer: None,
            // No route reads bodies here.
            body: if built.body.is_empty() {
                capability::action::Body::Empty
            } else {
                capability::action::Body::Unread
            },
            nonces: None,
        };
        let now_ms = crate::client::now_s().saturating_mul(1000);
        match gates::check(&view, &self.config, now_ms, &Portable) {
            Ok(_) => Ok(()),
            Err(refusal) => Err((refusal.reason, refusal.authenticated.is_some())),
        }
    }
}
