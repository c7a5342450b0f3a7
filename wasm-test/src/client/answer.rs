//! An HTTP answer, read whole.

use serde_json::Value;

use crate::Error;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// When the body breaks off.
    pub async fn read(response: reqwest::Response) -> Result<Answer, Error> {
        let url = response.url().to_string();
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.as_str().to_owned(), value)
            })
            .collect();
        let body = response.bytes().await.map_err(Error::http(&url))?.to_vec();
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null when it isn't any.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The reason of a refusal, by the edge or by the token endpoint; empty
    /// when there is none.
    pub fn reason(&self) -> String {
        self.member("reason")
    }

    /// The token endpoint's `error`; empty when there is none.
    pub fn oauth_error(&self) -> String {
        self.member("error")
    }

    fn member(&self, name: &str) -> String {
        let json = self.json();
        let member = json.get(name).and_then(Value::as_str);
        member.unwrap_or_default().to_owned()
    }

    /// Status and reason in a few words, for people.
    pub fn summary(&self) -> String {
        let reason = self.reason();
        if reason.is_empty() {
            self.status.to_string()
        } else {
            format!("{} {reason}", self.status)
        }
    }

    /// Fails unless the status is the one.
    ///
    /// # Errors
    /// With the whole answer in the text.
    pub fn expect(self, what: &str, status: u16) -> Result<Answer, Error> {
        if self.status == status {
            return Ok(self);
        }
        Err(Error::Unexpected(format!(
            "{what}: expected {status}, got {}: {}",
            self.status,
            self.text()
        )))
    }
}
