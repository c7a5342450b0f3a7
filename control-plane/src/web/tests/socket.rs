//! The admin socket: who is let in, and that nobody decides there.

use axum::extract::connect_info::ConnectInfo;
use serde_json::json;

use super::*;
use crate::web::{AdminSettings, Kind, OPERATOR, PeerUid, admin};

struct Socket {
    world: World,
    router: Router,
}

impl Socket {
    fn new(dev_single_uid: bool) -> Self {
        let world = World::new();
        let module_sha256 = watch::channel(Some("ab".repeat(32))).1;
        let settings = AdminSettings {
            refused_uids: vec![1000, 1001],
            dev_single_uid,
            own_uid: 990,
            issuer: "https://writ.example".to_owned(),
            module_sha256,
        };
        Self {
            router: admin(world.desk.clone(), world.logins.clone(), settings),
            world,
        }
    }

    async fn ask(&self, uid: Option<u32>, method: Method, path: &str) -> Answer {
        self.send(uid, method, path, json!({"digest": DIGEST}))
            .await
    }

    async fn send(&self, uid: Option<u32>, method: Method, path: &str, body: Value) -> Answer {
        let body = Body::from(body.to_string());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        if let Some(uid) = uid {
            request
                .extensions_mut()
                .insert(ConnectInfo(PeerUid { uid, pid: 7 }));
        }
        answer(self.router.clone(), request).await
    }
}

#[tokio::test]
async fn who_is_let_in() {
    for (uid, dev, expected, reason) in [
        (Some(0), false, StatusCode::OK, None),
        (Some(999), false, StatusCode::OK, None),
        (
            Some(1000),
            false,
            StatusCode::FORBIDDEN,
            Some("workload_uid"),
        ),
        (
            Some(1001),
            false,
            StatusCode::FORBIDDEN,
            Some("workload_uid"),
        ),
        (Some(1000), true, StatusCode::OK, None),
        (None, false, StatusCode::FORBIDDEN, Some("peer_unknown")),
        (None, true, StatusCode::FORBIDDEN, Some("peer_unknown")),
    ] {
        for path in ["/api/v1/status", "/api/v1/approvals"] {
            let answer = Socket::new(dev).ask(uid, Method::GET, path).await;
            assert_eq!(answer.status, expected, "{uid:?} {dev} {path}");
            assert_eq!(
                answer.json()["reason"].as_str(),
                reason,
                "{uid:?} {dev} {path}"
            );
        }
    }
}

#[tokio::test]
async fn nobody_decides_or_lets_anybody_in() {
    for (uid, dev) in [(0, false), (999, false), (1000, true), (1000, false)] {
        let socket = Socket::new(dev);
        let session = socket.world.sign_in_by_command_line().await;
        for path in [
            &format!("/api/v1/approvals/{ID}/approve"),
            &format!("/api/v1/approvals/{ID}/deny"),
            "/api/v1/ledger/confirm",
            "/api/v1/stops/lift",
        ] {
            let answer = socket.ask(Some(uid), Method::POST, path).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{uid} {dev} {path}");
            let says = if uid == 1000 && !dev {
                "uid"
            } else {
                "writ login"
            };
            assert!(answer.body.contains(says), "{}", answer.body);
        }
        drop(session);
        assert_eq!(socket.world.state(), ApprovalState::Pending);
    }
}

/// What can be taken away is taken away here too, by a person, and nothing else is done.
#[tokio::test]
async fn a_person_with_a_session_takes_rights_away_here_too() {
    let socket = Socket::new(false);
    let secret = socket.world.logins.mint(NOW);
    let opened = json!({ "secret": secret });
    let path = "/api/v1/session";
    let workload = socket.send(Some(1000), Method::POST, path, opened.clone());
    assert_eq!(workload.await.json()["reason"], "workload_uid");
    let answer = socket.send(Some(999), Method::POST, path, opened.clone());
    let answer = answer.await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    assert_eq!(answer.json()["who"], OPERATOR);
    let session = format!("Session {}", answer.json()["session"].as_str().unwrap());
    let again = socket.send(Some(999), Method::POST, path, opened).await;
    assert_eq!(again.json()["reason"], "wrong_secret");
    let target = json!({ "target": { "agent": "spiffe://writ.example/a" } });
    for (uid, session, path, status) in [
        (999, Some(&session), "/api/v1/stops", StatusCode::NO_CONTENT),
        (999, None, "/api/v1/stops", StatusCode::UNAUTHORIZED),
        (0, None, "/api/v1/stops", StatusCode::UNAUTHORIZED),
        (1000, Some(&session), "/api/v1/stops", StatusCode::FORBIDDEN),
        (
            999,
            Some(&session),
            "/api/v1/stops/lift",
            StatusCode::FORBIDDEN,
        ),
    ] {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", "application/json")
            .extension(ConnectInfo(PeerUid { uid, pid: 7 }));
        if let Some(session) = session {
            request = request.header("authorization", session);
        }
        let request = request.body(Body::from(target.to_string())).unwrap();
        let answer = answer_of(&socket, request).await;
        assert_eq!(answer.status, status, "{uid} {path}: {}", answer.body);
    }
}

async fn answer_of(socket: &Socket, request: Request<Body>) -> Answer {
    answer(socket.router.clone(), request).await
}

/// Who could read every secret here may have a person let in, and no other may.
#[tokio::test]
async fn a_link_for_somebody_is_made_by_who_runs_the_machine() {
    let path = "/api/v1/login-links";
    let bob = json!({"as": "bob"});
    for (uid, dev, made) in [
        (0, false, true),
        (990, false, true),
        (999, false, false),
        (1000, false, false),
        (0, true, false),
        (990, true, false),
        (1000, true, false),
    ] {
        let socket = Socket::new(dev);
        let answer = socket
            .send(Some(uid), Method::POST, path, bob.clone())
            .await;
        let links = lock(&socket.world.desk.links).clone();
        if !made {
            let reason = if uid == 1000 && !dev {
                "workload_uid"
            } else {
                "needs_a_human"
            };
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{uid} {dev}");
            assert_eq!(answer.json()["reason"], reason, "{uid} {dev}");
            assert!(links.is_empty());
            continue;
        }
        assert_eq!(answer.status, StatusCode::CREATED, "{uid}: {}", answer.body);
        assert_eq!(links, [("bob".to_owned(), uid)]);
        let url = answer.json()["url"].as_str().unwrap().to_owned();
        let secret = url.strip_prefix("https://writ.example/login#").unwrap();
        let opened = socket.world.logins.open(secret, Kind::CommandLine, NOW);
        assert_eq!(opened.unwrap().1.who, "bob");
    }
    let socket = Socket::new(false);
    let answer = socket.ask(Some(0), Method::POST, path).await;
    assert_eq!(answer.json()["reason"], "bad_body");
    let nobody = json!({"as": "carol"});
    let answer = socket.send(Some(0), Method::POST, path, nobody).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.body.contains("server.admins"), "{}", answer.body);
    assert!(lock(&socket.world.desk.links).is_empty());
}

#[tokio::test]
async fn it_tells_what_is_up() {
    let socket = Socket::new(false);
    let status = socket
        .ask(Some(0), Method::GET, "/api/v1/status")
        .await
        .json();
    assert_eq!(status["approvals"]["pending"], 1);
    assert_eq!(status["module_sha256"], "ab".repeat(32));
    assert_eq!(status["dev_single_uid"], false);
    let list = socket
        .ask(Some(0), Method::GET, "/api/v1/approvals")
        .await
        .json();
    assert_eq!(list["approvals"][0]["id"], ID);
    assert_eq!(
        socket.ask(Some(0), Method::GET, "/nothing").await.status,
        StatusCode::NOT_FOUND
    );
    let wrong = socket.ask(Some(0), Method::POST, "/api/v1/status").await;
    assert_eq!(wrong.status, StatusCode::METHOD_NOT_ALLOWED);
}
