//! Who is let in, and who is put out for it.

use super::*;

#[test]
fn a_secret_works_once_and_for_ten_minutes() {
    let logins = Logins::new();
    let secret = logins.mint(0);
    assert_eq!(Base64UrlUnpadded::decode_vec(&secret).unwrap().len(), 32);
    assert!(logins.open(&secret, Kind::Browser, LINK_MS - 1).is_ok());
    assert_eq!(
        logins.open(&secret, Kind::Browser, LINK_MS - 1),
        Err(LoginError::Wrong)
    );
    let late = logins.mint(0);
    assert_eq!(
        logins.open(&late, Kind::Browser, LINK_MS),
        Err(LoginError::Wrong)
    );
}

#[test]
fn sessions_end_when_idle_when_old_and_at_logout() {
    let logins = Logins::new();
    let open = |now| {
        logins
            .open(&logins.mint(now), Kind::Browser, now)
            .unwrap()
            .0
    };
    let idle = open(0);
    assert!(
        logins
            .session(&idle, Kind::Browser, false, IDLE_MS - 1)
            .is_some()
    );
    assert!(
        logins
            .session(&idle, Kind::Browser, true, IDLE_MS)
            .is_none(),
        "a look does not keep it alive"
    );
    let busy = open(0);
    let mut now = 0;
    while now < SESSION_MS - 1 {
        assert!(
            logins.session(&busy, Kind::Browser, true, now).is_some(),
            "at {now}"
        );
        now += IDLE_MS / 2;
    }
    assert!(
        logins
            .session(&busy, Kind::Browser, true, SESSION_MS)
            .is_none()
    );
    let left = open(0);
    logins.close(&left);
    assert!(logins.session(&left, Kind::Browser, true, 1).is_none());
}

#[test]
fn one_kind_of_session_is_never_the_other() {
    let logins = Logins::new();
    let (id, _) = logins.open(&logins.mint(0), Kind::CommandLine, 0).unwrap();
    assert!(logins.session(&id, Kind::Browser, true, 1).is_none());
    assert!(logins.session(&id, Kind::CommandLine, true, 1).is_some());
}

#[test]
fn wrong_secrets_are_counted_and_right_ones_still_work() {
    let logins = Logins::new();
    for _ in 0..WRONG_PER_MINUTE {
        assert_eq!(
            logins.open("guess", Kind::Browser, 5),
            Err(LoginError::Wrong)
        );
    }
    assert_eq!(
        logins.open("guess", Kind::Browser, 6),
        Err(LoginError::TooMany)
    );
    let secret = logins.mint(6);
    assert!(logins.open(&secret, Kind::Browser, 6).is_ok());
    assert_eq!(
        logins.open("guess", Kind::Browser, 5 + MINUTE_MS),
        Err(LoginError::Wrong)
    );
}

fn session_of(logins: &Logins, who: &str, now: Millis) -> String {
    let secret = logins.mint_for(who, now);
    logins.open(&secret, Kind::CommandLine, now).unwrap().0
}

fn is_open(logins: &Logins, id: &str, now: Millis) -> bool {
    let found = logins.session(id, Kind::CommandLine, false, now);
    found.is_some()
}

#[test]
fn one_persons_links_and_sessions_put_out_nobody_elses() {
    let logins = Logins::new();
    let mine = session_of(&logins, "alice", 0);
    let theirs = session_of(&logins, "bob", 0);
    let (unused, of_socket) = (logins.mint_in(&theirs, 0), logins.mint_for("alice", 0));
    for now in 1..5_000 {
        let secret = logins.mint_in(&mine, now);
        logins.mint_in(&mine, now);
        logins.open(&secret, Kind::CommandLine, now).unwrap();
    }
    let now = 5_000;
    assert!(is_open(&logins, &theirs, now), "another's session");
    assert!(
        is_open(&logins, &mine, now),
        "what it made goes before the session that made it"
    );
    for (whose, secret) in [("another's", &unused), ("the socket's", &of_socket)] {
        let opened = logins.open(secret, Kind::Browser, now);
        assert!(opened.is_ok(), "{whose} link");
    }
    let inner = logins.lock();
    let of_alice = inner.sessions.values().filter(|it| it.who == "alice");
    assert_eq!(of_alice.count(), SESSIONS_PER_PERSON);
    let of_alice = inner.links.values().filter(|it| it.who == "alice");
    assert!(of_alice.count() <= LINKS_PER_PERSON);
}

#[test]
fn links_of_the_socket_are_as_few_for_each_person() {
    let logins = Logins::new();
    let first = logins.mint_for("bob", 0);
    for now in 0..1_000 {
        logins.mint_for("alice", now);
    }
    assert_eq!(logins.lock().links.len(), LINKS_PER_PERSON + 1);
    assert!(logins.open(&first, Kind::Browser, 1_000).is_ok());
}

#[test]
fn counts_are_bounded_and_who_has_most_makes_room_for_who_has_less() {
    let logins = Logins::new();
    let people = SESSIONS_MAX / SESSIONS_PER_PERSON;
    let mut all = Vec::new();
    for at in 0..SESSIONS_MAX {
        let who = format!("p{}", at % people);
        all.push(session_of(&logins, &who, at as Millis));
    }
    let now = SESSIONS_MAX as Millis;
    let fresh = session_of(&logins, "one more", now);
    let open = |logins: &Logins| all.iter().filter(|id| is_open(logins, id, now)).count();
    assert_eq!(open(&logins), SESSIONS_MAX - 1, "one of whoever has most");
    let before = open(&logins);
    for at in 0..SESSIONS_MAX as Millis {
        session_of(&logins, "one more", now + at);
    }
    let left = open(&logins);
    assert!(
        before - left < SESSIONS_PER_PERSON,
        "{left} of {before} are left"
    );
    assert!(!is_open(&logins, &fresh, now), "who has a share uses that");
    assert!(logins.lock().sessions.len() <= SESSIONS_MAX);
    for at in 0..2 * LINKS_MAX as Millis {
        logins.mint_for(&format!("p{at}"), now);
    }
    assert!(logins.lock().links.len() <= 2 * LINKS_MAX);
}
