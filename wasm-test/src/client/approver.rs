//! A person at the approvals page, without JavaScript.

use std::time::Duration;

use tokio::time::Instant;

use super::Answer;
use super::agent::http_client;
use crate::Error;

const POLL: Duration = Duration::from_millis(100);

/// What a person can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Approve,
    /// No.
    Deny,
}

impl Verdict {
    fn as_path(self) -> &'static str {
        match self {
            Verdict::Approve => "approve",
            Verdict::Deny => "deny",
        }
    }
}

/// A signed-in session.
#[derive(Clone, Debug)]
pub struct Approver {
    ui: String,
    at: String,
    cookie: String,
    http: reqwest::Client,
}

impl Approver {
    /// Signs in with a one-time link, `ui/login#SECRET`.
    ///
    /// # Errors
    /// When the link has no secret or isn't taken.
    pub async fn login(link: &str) -> Result<Approver, Error> {
        let page = link.split('#').next().unwrap_or_default();
        Approver::login_at(link, page.trim_end_matches("/login")).await
    }

    /// As [`Approver::login`], at the address of the replica that made the link:
    /// sessions are a replica's own.
    ///
    /// # Errors
    /// As [`Approver::login`].
    pub async fn login_at(link: &str, at: &str) -> Result<Approver, Error> {
        let (page, secret) = link
            .split_once('#')
            .ok_or_else(|| Error::Unexpected("the login link has no fragment".to_owned()))?;
        let ui = page.trim_end_matches("/login").to_owned();
        let page = &format!("{at}/login");
        let http = http_client();
        let request = http
            .post(page)
            .header("origin", &ui)
            .form(&[("secret", secret)]);
        let answer = Answer::read(request.send().await.map_err(Error::http(page))?).await?;
        let cookie = answer
            .header("set-cookie")
            .and_then(|cookie| cookie.split(';').next())
            .ok_or_else(|| Error::Unexpected(format!("the login was refused: {}", answer.text())))?
            .to_owned();
        let at = at.to_owned();
        Ok(Approver {
            ui,
            at,
            cookie,
            http,
        })
    }

    /// A page.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn page(&self, path: &str) -> Result<Answer, Error> {
        let url = format!("{}{path}", self.at);
        let request = self.http.get(&url).header("cookie", &self.cookie);
        Answer::read(request.send().await.map_err(Error::http(&url))?).await
    }

    /// Posts a form as the page would.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Result<Answer, Error> {
        let url = format!("{}{path}", self.at);
        let request = self
            .http
            .post(&url)
            .header("cookie", &self.cookie)
            .header("origin", &self.ui)
            .form(form);
        Answer::read(request.send().await.map_err(Error::http(&url))?).await
    }

    /// The ids that the inbox links to.
    ///
    /// # Errors
    /// When the inbox can't be read.
    pub async fn inbox(&self) -> Result<Vec<String>, Error> {
        let page = self
            .page("/approvals")
            .await?
            .expect("the inbox", 200)?
            .text();
        let mut ids: Vec<String> = Vec::new();
        for rest in page.split("/approvals/").skip(1) {
            let id: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_')
                .collect();
            if !id.is_empty() && !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Waits until the inbox links to one that isn't in `known`.
    ///
    /// # Errors
    /// When none has come within `patience`.
    pub async fn next(&self, known: &[String], patience: Duration) -> Result<String, Error> {
        let deadline = Instant::now() + patience;
        loop {
            let found = self
                .inbox()
                .await?
                .into_iter()
                .find(|id| !known.contains(id));
            if let Some(id) = found {
                return Ok(id);
            }
            if Instant::now() > deadline {
                return Err(Error::Unexpected(format!(
                    "no new approval in the inbox after {patience:?}"
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Opens an approval and answers it with the form that it shows.
    ///
    /// # Errors
    /// When the page lacks the form's fields.
    pub async fn decide(&self, id: &str, verdict: Verdict) -> Result<Answer, Error> {
        let path = format!("/approvals/{id}");
        let page = self.page(&path).await?.expect("the approval's page", 200)?;
        let page = page.text();
        let action = format!("{path}/{}", verdict.as_path());
        let form = form(&page, &action)?;
        let csrf = field(form, "csrf")?;
        let digest = field(form, "digest")?;
        self.post(&action, &[("csrf", &csrf), ("digest", &digest)])
            .await
    }
}

/// The form that posts to `action`.
fn form<'a>(page: &'a str, action: &str) -> Result<&'a str, Error> {
    page.split("<form")
        .skip(1)
        .filter_map(|rest| rest.split("</form>").next())
        .find(|form| {
            let tag = form.split('>').next().unwrap_or_default();
            // A page may have one form with a button for each answer.
            attribute(tag, "action").as_deref() == Some(action)
                || form.contains(&format!("formaction=\"{action}\""))
        })
        .ok_or_else(|| Error::Unexpected(format!("the page has no form that posts to {action}")))
}

/// The value of the first `<input name=… value=…>` of that name.
fn field(page: &str, name: &str) -> Result<String, Error> {
    page.split("<input")
        .skip(1)
        .filter_map(|rest| rest.split('>').next())
        .find(|tag| attribute(tag, "name").as_deref() == Some(name))
        .and_then(|tag| attribute(tag, "value"))
        .ok_or_else(|| Error::Unexpected(format!("the page has no field {name}")))
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    rest.split('"').next().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_forms_fields_in_any_order_of_attributes() {
        let page = r#"<form><input type="hidden" name="csrf" value="c1"><input value="d1" name="digest"/></form>"#;
        assert_eq!(field(page, "csrf").unwrap(), "c1");
        assert_eq!(field(page, "digest").unwrap(), "d1");
        assert!(field(page, "other").is_err());
    }

    #[test]
    fn finds_the_form_of_the_answer() {
        let page = r#"<form action="/logout"><input name="csrf" value="1"></form><form method="post" action="/a/deny"><input name="csrf" value="2"></form>"#;
        let found = form(page, "/a/deny").unwrap();
        assert_eq!(field(found, "csrf").unwrap(), "2");
        assert!(form(page, "/a/approve").is_err());
    }
}
