//! The list of keys, and what changes it.

use super::list::{FIRST, FORGOTTEN_AFTER_S, LIST, RETIRED_S, is_due, standings};
use super::*;
use std::collections::BTreeSet;
use std::sync::Arc;

fn files(dir: &tempfile::TempDir) -> Place {
    Place::files(dir.path())
}

const NOW: u64 = 1_800_000_000;

fn key(kid: &str, from_s: u64, revoked_s: Option<u64>) -> Listed {
    Listed {
        kid: kid.to_owned(),
        file: format!("{kid}.pem"),
        object: None,
        point: None,
        from_s,
        made_s: None,
        revoked_s,
    }
}

#[test]
fn where_a_key_stands_follows_from_the_list_and_the_time() {
    use Standing::{Active, Next, Over, Retired, Revoked};
    let list = [
        key("a", 0, None),
        key("b", NOW, None),
        key("c", NOW + 50, None),
    ];
    for (at, wanted) in [
        (NOW - 1, [Active, Next, Next]),
        (NOW, [Retired, Active, Next]),
        (NOW + 50, [Retired, Retired, Active]),
        (NOW + RETIRED_S - 1, [Retired, Retired, Active]),
        (NOW + RETIRED_S, [Over, Retired, Active]),
        (NOW + RETIRED_S + 50, [Over, Over, Active]),
    ] {
        assert_eq!(standings(&list, at), wanted, "{at}");
    }
    let list = [
        key("a", 0, None),
        key("b", NOW, Some(NOW + 1)),
        key("c", NOW + 1, None),
    ];
    assert_eq!(standings(&list, NOW + 1), [Retired, Revoked, Active]);
    let list = [key("a", 0, Some(1))];
    assert_eq!(standings(&list, NOW), [Revoked]);
}

#[test]
fn a_rotated_key_is_known_before_it_signs_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let ring = KeyRing::open(&files(&dir), NOW).unwrap();
    let first = ring.active(NOW).unwrap().kid().to_owned();
    assert_eq!(ring.known(NOW).len(), 1);
    let made = rotate(&files(&dir), NOW).unwrap();
    assert!(ring.reload().unwrap());
    assert!(!ring.reload().unwrap());
    assert_eq!(ring.active(NOW).unwrap().kid(), first);
    assert_eq!(ring.known(NOW).len(), 2, "known before it signs");
    let then = NOW + AHEAD_S;
    assert_eq!(ring.active(then).unwrap().kid(), made.kid);
    assert_eq!(ring.known(then).len(), 2, "the old one's tokens are good");
    assert_eq!(ring.known(then + RETIRED_S).len(), 1);
    let again = KeyRing::open(&files(&dir), NOW).unwrap();
    assert_eq!(again.active(then).unwrap().kid(), made.kid);
}

#[test]
fn a_revoked_key_is_so_for_good_and_another_signs() {
    let dir = tempfile::tempdir().unwrap();
    let ring = KeyRing::open(&files(&dir), NOW).unwrap();
    let first = ring.active(NOW).unwrap().kid().to_owned();
    let Revoked::Replaced(made) = revoke(&files(&dir), &first, NOW).unwrap() else {
        panic!("it was the one that signs");
    };
    assert!(ring.reload().unwrap());
    assert!(ring.is_revoked(&first) && !ring.is_revoked(&made.kid));
    assert_eq!(ring.active(NOW).unwrap().kid(), made.kid);
    assert_eq!(ring.known(NOW).len(), 1);
    assert!(!dir.path().join(FIRST).exists(), "its private half is gone");
    let again = KeyRing::open(&files(&dir), NOW).unwrap();
    assert!(again.is_revoked(&first));
    for kid in [first.as_str(), "nobody's"] {
        assert!(revoke(&files(&dir), kid, NOW).is_err());
    }
    // One that does not sign leaves the one that does.
    let next = rotate(&files(&dir), NOW).unwrap();
    let beside = revoke(&files(&dir), &next.kid, NOW).unwrap();
    assert!(matches!(beside, Revoked::Beside), "{beside:?}");
}

#[test]
fn what_cannot_be_used_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ring = KeyRing::open(&files(&dir), NOW).unwrap();
    let first = ring.active(NOW).unwrap().kid().to_owned();
    let entry = format!(r#"{{"kid":"{first}","file":"{FIRST}","from_s":0}}"#);
    for text in [
        "",
        "[]",
        "{}",
        &format!("[{entry},{entry}]"),
        r#"[{"kid":"x","file":"../a.pem","from_s":0}]"#,
        r#"[{"kid":"x","file":"gone.pem","from_s":0}]"#,
        &format!(r#"[{{"kid":"x","file":"{FIRST}","from_s":0}}]"#),
        &entry.replace("from_s", "from"),
    ] {
        std::fs::write(dir.path().join(LIST), text).unwrap();
        assert!(ring.reload().is_err(), "{text}");
        assert_eq!(ring.active(NOW).unwrap().kid(), first);
    }
    std::fs::write(dir.path().join(LIST), format!("[{entry}]")).unwrap();
    assert!(ring.reload().unwrap());
    std::fs::remove_file(dir.path().join(FIRST)).unwrap();
    std::fs::write(dir.path().join(LIST), format!("[{entry}] ")).unwrap();
    assert!(ring.reload().is_err());
    assert!(!dir.path().join(FIRST).exists(), "it is not made anew");
}

#[test]
fn what_is_long_over_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    KeyRing::open(&files(&dir), NOW).unwrap();
    rotate(&files(&dir), NOW).unwrap();
    let later = NOW + AHEAD_S + RETIRED_S + FORGOTTEN_AFTER_S;
    rotate(&files(&dir), later).unwrap();
    let left = list(&files(&dir), later).unwrap();
    assert_eq!(left.len(), 2);
    assert!(!dir.path().join(FIRST).exists());
}

const DAY: u64 = 86_400;

#[test]
fn a_schedule_makes_one_key_when_it_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let (every, other) = (90 * DAY, KeyRing::open(&files(&dir), NOW).unwrap());
    let ring = KeyRing::open(&files(&dir), NOW).unwrap();
    let due = |at| rotate_if_due(&files(&dir), at, every).unwrap();
    // The first key counts from when it was made, not from the beginning of time.
    assert!(!ring.is_due(NOW, every) && !ring.is_due(NOW + every - 1, every));
    assert_eq!(due(NOW + every - 1), None);
    let first = ring.active(NOW).unwrap().kid().to_owned();
    // Off for a year: one rotation, by whoever comes first.
    let late = NOW + 365 * DAY;
    assert!(ring.is_due(late, every) && other.is_due(late, every));
    let made = due(late).unwrap();
    assert_eq!(made.from_s, late + AHEAD_S);
    assert_eq!(due(late), None, "another replica, or another look");
    assert!(ring.reload().unwrap() && !ring.is_due(late, every));
    assert_eq!(ring.active(late).unwrap().kid(), first);
    assert_eq!(ring.known(late).len(), 2);
    let signs = late + AHEAD_S;
    assert_eq!(ring.active(signs).unwrap().kid(), made.kid);
    assert_eq!(due(signs), None);
    assert_eq!(due(signs + every - 1), None);
    assert!(due(signs + every).is_some());
    // By hand in between: the schedule begins anew.
    let hand = rotate(&files(&dir), signs + every + DAY).unwrap();
    assert_eq!(due(hand.from_s + every - 1), None);
    assert!(due(hand.from_s + every).is_some());
}

#[test]
fn a_schedule_goes_by_the_key_that_signs() {
    let every = 90 * DAY;
    let at = |from_s, made_s| Listed {
        made_s,
        ..key("a", from_s, None)
    };
    for (list, due) in [
        // Of an earlier version: nobody knows how old it is.
        (vec![at(0, None)], true),
        (vec![at(0, Some(NOW - 1))], false),
        (vec![at(0, Some(NOW - every))], true),
        // A clock that was wrong once does not end the schedule.
        (vec![at(0, Some(NOW + 9 * every))], true),
        (vec![at(0, None), key("b", NOW + 9 * every, None)], true),
        (vec![at(0, None), key("b", NOW + AHEAD_S, None)], false),
        // A revoked one is no successor, and where nothing signs nothing is due.
        (vec![at(0, None), key("b", NOW + AHEAD_S, Some(NOW))], true),
        (vec![key("b", 0, Some(NOW))], false),
        (vec![key("b", NOW - 1, None), at(0, None)], false),
    ] {
        assert_eq!(is_due(&list, NOW, every), due, "{list:?}");
    }
}

#[test]
fn a_year_on_schedule_keeps_the_list_short() {
    let dir = tempfile::tempdir().unwrap();
    KeyRing::open(&files(&dir), NOW).unwrap();
    let mut made = 0;
    for hour in (0..365 * 24).step_by(6) {
        let at = NOW + hour * 3_600;
        made += usize::from(rotate_if_due(&files(&dir), at, DAY).unwrap().is_some());
        let left = list(&files(&dir), at).unwrap().len();
        assert!(left <= 4, "{left} at {hour}");
    }
    assert!((290..=365).contains(&made), "{made}");
}

#[test]
fn replicas_that_look_at_once_make_one_key() {
    let dir = tempfile::tempdir().unwrap();
    KeyRing::open(&files(&dir), NOW).unwrap();
    let made: usize = std::thread::scope(|scope| {
        let look = || {
            usize::from(
                rotate_if_due(&files(&dir), NOW + DAY, DAY)
                    .unwrap()
                    .is_some(),
            )
        };
        let all: Vec<_> = (0..8).map(|_| scope.spawn(look)).collect();
        all.into_iter().map(|it| it.join().unwrap()).sum()
    });
    assert_eq!(made, 1);
    assert_eq!(list(&files(&dir), NOW + DAY).unwrap().len(), 2);
}

/// Whoever goes by what was fetched for as long as the answer says never meets a
/// token of an unknown key: at whatever second of a rotation it fetched, from a
/// replica that saw the list a second late, or one whose clock is behind.
#[test]
fn a_cache_of_the_published_keys_never_lacks_the_one_that_signs() {
    const SEEN_LATE_S: u64 = 1;
    const CLOCKS_S: u64 = 3;
    let dir = tempfile::tempdir().unwrap();
    let ring = KeyRing::open(&files(&dir), NOW).unwrap();
    let kids = |at: u64| -> BTreeSet<String> {
        let known = ring.known(at).into_iter();
        known
            .map(|it| it["kid"].as_str().unwrap().to_owned())
            .collect()
    };
    let before = kids(NOW);
    let rotated = NOW + 100;
    rotate(&files(&dir), rotated).unwrap();
    ring.reload().unwrap();
    for fetched in NOW..rotated + 2 * AHEAD_S + RETIRED_S {
        let seen = fetched >= rotated + SEEN_LATE_S;
        let cached = if seen { kids(fetched) } else { before.clone() };
        for at in fetched..=fetched + CACHED_S {
            let active = ring.active(at + CLOCKS_S).unwrap();
            assert!(cached.contains(active.kid()), "{fetched} {at}");
            // And the last token of the key before.
            let last = ring.active(at.saturating_sub(crate::config::TOKEN_LIFETIME_MAX_S));
            assert!(cached.contains(last.unwrap().kid()), "{fetched} {at}");
        }
    }
}

/// A place whose token can't be opened, and which had a key in a file before.
fn away(dir: &tempfile::TempDir) -> (Place, String) {
    let ring = KeyRing::open(&files(dir), NOW).unwrap();
    let first = ring.active(NOW).unwrap().kid().to_owned();
    let mut place = files(dir);
    place.token = Some(Arc::new(Hsm::never(&KeyError::Pin("no PIN".to_owned()))));
    (place, first)
}

#[test]
fn a_token_that_is_away_keeps_nobody_from_revoking() {
    let dir = tempfile::tempdir().unwrap();
    let (place, first) = away(&dir);
    let done = revoke(&place, &first, NOW).unwrap();
    assert!(
        matches!(&done, Revoked::Last(KeyError::TokenAway(why)) if why == "no PIN"),
        "{done:?}"
    );
    // Nor is a key made in a file instead.
    let all = list(&place, NOW).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].1, Standing::Revoked);
    let ring = KeyRing::open(&files(&dir), NOW).unwrap();
    assert!(matches!(ring.active(NOW), Err(KeyError::NoneActive)));
}

#[test]
fn nothing_is_made_while_a_token_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let (place, first) = away(&dir);
    for done in [
        rotate(&place, NOW).map(drop),
        rotate_if_due(&place, NOW + 86_400, 86_400).map(drop),
        // The config says that keys are in the token from now on.
        KeyRing::open(&place, NOW).map(drop),
    ] {
        assert!(matches!(done, Err(KeyError::TokenAway(_))), "{done:?}");
    }
    let all = list(&place, NOW).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(
        (all[0].0.kid.as_str(), all[0].1),
        (first.as_str(), Standing::Active)
    );
    let empty = tempfile::tempdir().unwrap();
    let nowhere = Place {
        dir: empty.path().to_owned(),
        ..place
    };
    assert!(KeyRing::open(&nowhere, NOW).is_err());
    assert!(!empty.path().join(FIRST).exists(), "no file instead");
}

/// A key of a token in the list, by what the list says of it.
#[test]
fn a_listed_key_of_a_token_is_bound_to_its_public_half() {
    let dir = tempfile::tempdir().unwrap();
    let point = signer::Point([7; 64]);
    let good = Listed {
        file: String::new(),
        object: Some("0011".to_owned()),
        point: Some(point.text()),
        ..key(&point.thumbprint(), 0, None)
    };
    let write = |listed: &Listed| {
        let text = serde_json::to_vec(&[listed]).unwrap();
        std::fs::write(dir.path().join(LIST), text).unwrap();
        list(&files(&dir), NOW)
    };
    assert_eq!(write(&good).unwrap()[0].1, Standing::Active);
    let other = signer::Point([8; 64]);
    let bad = [
        Listed {
            point: Some(other.text()),
            ..good.clone()
        },
        Listed {
            point: None,
            ..good.clone()
        },
        Listed {
            point: Some("AAAA".to_owned()),
            ..good.clone()
        },
        Listed {
            object: Some("no hex".to_owned()),
            ..good.clone()
        },
        Listed {
            file: "token.pem".to_owned(),
            ..good.clone()
        },
        Listed {
            object: None,
            ..good
        },
    ];
    for listed in bad {
        let refused = write(&listed);
        assert!(matches!(refused, Err(KeyError::Damaged(_))), "{listed:?}");
    }
}
