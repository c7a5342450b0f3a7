//! The admin socket: what comes in over it shows and never decides.

use std::path::Path;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::plane::{Plane, Prepared};

const DIGEST: &str = r#"{"digest":"x"}"#;

/// One request on the admin socket: status and JSON.
pub async fn admin(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn the_admin_socket_shows_and_never_decides() {
    let plane = Plane::start().await;
    let socket = plane.path("admin.sock");
    for path in ["/api/v1/status", "/api/v1/approvals"] {
        assert_eq!(admin(&socket, "GET", path, "").await.0, 200, "{path}");
    }
    for path in [
        "/api/v1/approvals/apr_x/approve",
        "/api/v1/approvals/apr_x/deny",
        "/api/v1/stops/lift",
        "/api/v1/login-links",
    ] {
        let (status, body) = admin(&socket, "POST", path, DIGEST).await;
        assert_eq!(
            (status, &body["reason"]),
            (403, &Value::from("needs_a_human")),
            "{path}"
        );
    }
    for path in [
        "/approvals/apr_x/approve",
        "/login",
        "/oauth2/token",
        "/login-links",
    ] {
        let (status, _) = admin(&socket, "POST", path, DIGEST).await;
        assert_eq!(status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_workloads_uid_is_refused_on_the_admin_socket() {
    let apart = Prepared::new().with("[identity]\ndev_single_uid = false");
    let plane = apart.start().await;
    let socket = plane.path("admin.sock");
    for (method, path) in [
        ("GET", "/api/v1/status"),
        ("GET", "/api/v1/approvals"),
        ("POST", "/api/v1/approvals/apr_x/approve"),
        ("POST", "/api/v1/login-links"),
        ("GET", "/nothing"),
    ] {
        let (status, body) = admin(&socket, method, path, DIGEST).await;
        assert_eq!(
            (status, &body["reason"]),
            (403, &Value::from("workload_uid")),
            "{method} {path}"
        );
    }
    let mut command = plane.writ();
    command.args(["approvals", "list"]);
    let output = crate::plane::run(command).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = crate::plane::text(&output.stderr);
    assert!(said.contains("uid of your own"), "{said}");
    // The same uid is an agent all the same.
    plane
        .agent()
        .await
        .token("GET", "/files/report.txt")
        .await
        .unwrap();
}
