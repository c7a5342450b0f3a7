//! What the command line keeps for its user, and the admin socket's client.

use base64ct::{Base64UrlUnpadded, Encoding};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// An answer of the admin socket is at most this long; bytes.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// Why the admin socket did not tell what it was asked for.
pub(crate) struct Untold {
    /// In words, for a terminal.
    pub(crate) why: String,
    /// Whether it was refused, and not lost.
    is_refusal: bool,
}

impl Untold {
    /// Says so, as all that the command came to.
    pub(crate) fn end(&self) -> ExitCode {
        if self.is_refusal {
            super::refuse(&self.why)
        } else {
            super::fail(&self.why)
        }
    }
}

/// What a path of the admin socket tells.
pub(crate) async fn admin_told(socket: &Path, path: &str) -> Result<Value, Untold> {
    match admin_get(socket, path).await {
        Ok((status, value)) if status.is_success() => Ok(value),
        Ok((_, problem)) => {
            let detail = problem.get("detail").and_then(Value::as_str);
            Err(Untold {
                why: super::plain(detail.unwrap_or("the control plane refused")),
                is_refusal: true,
            })
        }
        Err(why) => Err(Untold {
            why,
            is_refusal: false,
        }),
    }
}

/// `$XDG_STATE_HOME/writ`, or `~/.local/state/writ`; made with mode 0700.
pub(crate) fn state_dir() -> Result<PathBuf, String> {
    let base = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .ok_or("neither XDG_STATE_HOME nor HOME is set; set one, or name a file")?;
    let dir = base.join("writ");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|error| format!("can't make `{}`: {error}", dir.display()))?;
    Ok(dir)
}

/// The file of the human session with this issuer.
pub(crate) fn session_file(issuer: &str) -> Result<PathBuf, String> {
    let name = Base64UrlUnpadded::encode_string(issuer.as_bytes());
    Ok(state_dir()?.join(format!("session-{name}")))
}

/// Writes a secret for this user alone.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), String> {
    let half = path.with_extension("new");
    let _ = std::fs::remove_file(&half);
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&half)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&half, path))
        .map_err(|error| format!("can't write `{}`: {error}", path.display()))
}

/// Asks the control plane on this machine, as the uid that we are.
pub(crate) async fn admin_get(socket: &Path, path: &str) -> Result<(StatusCode, Value), String> {
    admin_send(socket, Method::GET, path, None).await
}

/// As [`admin_get`], with a document where there is one.
pub(crate) async fn admin_send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<(StatusCode, Value), String> {
    admin_as(socket, (method, path), body, None).await
}

/// The same with a person's session, where there is one.
pub(crate) async fn admin_as(
    socket: &Path,
    (method, path): (Method, &str),
    body: Option<Value>,
    session: Option<&str>,
) -> Result<(StatusCode, Value), String> {
    let gone = |error: &dyn std::fmt::Display| {
        format!(
            "the control plane at `{}` can't be asked: {error}; is `writ serve` running? name its socket with --admin-socket",
            socket.display()
        )
    };
    let stream = tokio::net::UnixStream::connect(socket)
        .await
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => not_for_us(socket),
            _ => gone(&error),
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| gone(&error))?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json");
    if let Some(session) = session {
        request = request.header("authorization", format!("Session {session}"));
    }
    let request = request
        .body(Full::<Bytes>::from(
            body.map_or_else(String::new, |it| it.to_string()),
        ))
        .map_err(|error| gone(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| gone(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(|error| match error.is::<LengthLimitError>() {
            true => too_long(socket),
            false => gone(&error),
        })?
        .to_bytes();
    let value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok((status, value))
}

/// The control plane runs, and says more than is taken.
fn too_long(socket: &Path) -> String {
    format!(
        "the answer of the control plane at `{}` is longer than {} MiB, which is all that is read of one",
        socket.display(),
        ANSWER_MAX / (1024 * 1024)
    )
}

/// Who may use a socket that this user may not.
fn not_for_us(socket: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let shown = socket.display();
    let Ok(found) = std::fs::metadata(socket) else {
        return format!("this user may not look for `{shown}`: its directory is closed to it");
    };
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let group = group_name(&groups, found.gid()).map_or_else(
        || format!("the group {}", found.gid()),
        |name| format!("the group `{name}`"),
    );
    format!(
        "`{shown}` is for {group}, which this user is not in; root adds people to it, and never an agent"
    )
}

/// The name that `/etc/group` has for a gid.
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// It is not told as if nothing ran there.
    #[tokio::test]
    async fn an_answer_that_is_too_long_is_told_as_that() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let _ = stream.read(&mut asked).await.unwrap();
            let length = ANSWER_MAX + 1;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            // It is hung up on before the end.
            let _ = stream.write_all(&vec![b' '; length]).await;
        });
        let untold = admin_told(&socket, "/api/v1/stops").await.err().unwrap();
        assert!(untold.why.contains("longer than 16 MiB"), "{}", untold.why);
        assert!(!untold.is_refusal);
        let nobody = admin_told(&dir.path().join("none"), "/")
            .await
            .err()
            .unwrap();
        assert!(
            nobody.why.contains("is `writ serve` running?"),
            "{}",
            nobody.why
        );
    }

    #[test]
    fn a_group_is_found_by_its_number() {
        let groups = "root:x:0:\nbroken\nwrit:x:981:ann,ben\n";
        assert_eq!(group_name(groups, 981).as_deref(), Some("writ"));
        assert_eq!(group_name(groups, 98), None);
    }
}
