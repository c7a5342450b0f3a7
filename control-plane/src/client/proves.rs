//! What shows the issuer which agent it is: the Workload API, or a token in a file.

use super::ClientError;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// A token in a file is at most this long; bytes. The issuer takes no longer one.
const TOKEN_MAX: u64 = 16 * 1024;

/// Where an agent's own evidence comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proves {
    /// The SPIFFE Workload API at this socket: a JWT-SVID, and for TLS an X.509-SVID.
    WorkloadApi(PathBuf),
    /// A file that holds a token of an issuer that the control plane believes, such as a
    /// projected service account token of Kubernetes. It is read for each exchange: whoever
    /// puts it there renews it.
    TokenFile(PathBuf),
}

impl Proves {
    /// A token that names the agent, for this issuer.
    ///
    /// # Errors
    /// [`ClientError::Identity`] or [`ClientError::TokenFile`].
    pub(super) async fn token(&self, issuer: &str) -> Result<String, ClientError> {
        match self {
            Self::WorkloadApi(socket) => Ok(identity::fetch_jwt_svid(socket, issuer).await?),
            Self::TokenFile(file) => read(file).map_err(|why| ClientError::TokenFile {
                path: file.display().to_string(),
                why,
            }),
        }
    }
}

fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| error.to_string())?;
    let mut some = opened.take(TOKEN_MAX.saturating_add(1));
    some.read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if u64::try_from(text.len()).is_ok_and(|length| length > TOKEN_MAX) {
        return Err(format!("it is longer than {TOKEN_MAX} bytes"));
    }
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err("it has to hold one token, and nothing else".to_owned());
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_each_time_and_holds_one_token() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let proves = Proves::TokenFile(file.clone());
        let long = "a".repeat(16 * 1024 + 1);
        let table = [
            (None, Err("No such file")),
            (Some("a.b.c\n"), Ok("a.b.c")),
            (Some("d.e.f"), Ok("d.e.f")),
            (Some(" \n"), Err("one token")),
            (Some("a.b.c d.e.f"), Err("one token")),
            (Some(&*long), Err("longer than 16384 bytes")),
        ];
        for (text, wanted) in table {
            if let Some(text) = text {
                std::fs::write(&file, text).unwrap();
            }
            let got = proves.token("https://writ.example").await;
            match (got, wanted) {
                (Ok(got), Ok(wanted)) => assert_eq!(got, wanted),
                (Err(error), Err(wanted)) => {
                    let said = error.to_string();
                    assert!(said.contains(wanted) && said.contains("token`"), "{said}");
                }
                (got, wanted) => panic!("{got:?}, not {wanted:?}"),
            }
        }
    }
}
