//! What the command line keeps for its user, and the admin socket's client.

use base64ct::{Base64UrlUnpadded, Encoding};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// An answer of the admin socket is at most this long; bytes.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

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
        .map_err(|error| gone(&error))?
        .to_bytes();
    let value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok((status, value))
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
    use super::group_name;

    #[test]
    fn a_group_is_found_by_its_number() {
        let groups = "root:x:0:\nbroken\nwrit:x:981:ann,ben\n";
        assert_eq!(group_name(groups, 981).as_deref(), Some("writ"));
        assert_eq!(group_name(groups, 98), None);
    }
}
