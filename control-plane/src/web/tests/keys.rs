//! Who may change the keys that sign tokens, and how it is asked for.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::*;

async fn post(world: &World, session: &str, path: &str, body: Value) -> (u16, String) {
    let with = With::json(&body).header("authorization", session);
    let answer = world.post(path, with).await;
    let said: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let reason = said["reason"].as_str().unwrap_or_default().to_owned();
    (answer.status.as_u16(), reason)
}

#[tokio::test]
async fn a_key_is_revoked_by_an_administrator_who_signed_in_just_now() {
    let world = World::new();
    let session = world.sign_in_by_command_line().await;
    let (rotate, revoke) = ("/api/v1/keys/rotate", "/api/v1/keys/revoke");
    let one = json!({"kid": "one", "why": "seen"});
    let secret = world.logins.mint_for("chair", NOW);
    let (id, _) = world
        .logins
        .open(&secret, crate::web::Kind::CommandLine, NOW)
        .unwrap();
    let chair = format!("Session {id}");
    let (cookie, _) = world.sign_in().await;
    let minutes = |n: u64| n * 60_000;
    let table: [(u64, &str, &str, Value, u16, &str); 11] = [
        (0, "", rotate, json!({}), 401, "not_signed_in"),
        (0, "", revoke, one.clone(), 401, "not_signed_in"),
        (0, &*chair, rotate, json!({}), 403, "not_an_admin"),
        (0, &chair, revoke, one.clone(), 403, "not_an_admin"),
        (0, &session, revoke, json!({}), 422, "bad_body"),
        (0, &session, revoke, json!({"kid": "a\nb"}), 400, "bad_text"),
        (0, &session, revoke, json!({"kid": "x"}), 404, "not_found"),
        (0, &session, revoke, one.clone(), 200, ""),
        (
            minutes(5),
            &session,
            revoke,
            one.clone(),
            403,
            "step_up_needed",
        ),
        (minutes(5), &chair, revoke, one, 403, "not_an_admin"),
        (minutes(5), &session, rotate, json!({}), 200, ""),
    ];
    for (later, session, path, body, status, reason) in table {
        world.desk.now.store(NOW + later, Ordering::SeqCst);
        let got = post(&world, session, path, body.clone()).await;
        assert_eq!(got, (status, reason.to_owned()), "{later} {path} {body}");
    }
    let revoked = KeyChange::Revoke {
        kid: "one".into(),
        why: "seen".into(),
    };
    let by = |change| (change, "operator".to_owned());
    let wanted = [by(revoked), by(KeyChange::Rotate)];
    assert_eq!(*lock(&world.desk.keys_changed), wanted);
    // A browser's session reads and changes nothing.
    let with = With::json(&json!({}))
        .header("cookie", &cookie)
        .header("origin", ISSUER);
    assert_eq!(world.post(rotate, with).await.status.as_u16(), 401);
    let list = world.get("/api/v1/keys", &cookie).await.json();
    let wanted =
        json!({"kid": "one", "standing": "active", "from_s": 0, "revoked_s": null, "held": "file"});
    assert_eq!(list, json!({ "keys": [wanted] }));
    assert_eq!(world.get("/api/v1/keys", "").await.status.as_u16(), 401);
}
