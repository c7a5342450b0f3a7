use super::*;
use ledger::model::{Command, Target};

const AGENT: &str = "spiffe://writ.example/agent/a";

fn id(prefix: u8, counter: u64) -> QuestionId {
    QuestionId {
        prefix: vec![prefix; 16],
        counter,
    }
}

fn told(user: &str) -> OpenRequest {
    OpenRequest {
        id: Some(id(1, 1)),
        token_hash: vec![7; 32],
        agent: AGENT.to_owned(),
        user: user.to_owned(),
        chain: Vec::new(),
        jkt: "key".to_owned(),
        issued_s: 5,
        lineage: vec![vec![9; 32]],
    }
}

fn enter(table: &Table, rooms: &Rooms, counter: u64) {
    table.enter(One {
        id: id(1, counter),
        whose: Whose::Told(Box::new(read(told("")).unwrap())),
        ending: None,
        _room: rooms.take().unwrap(),
    });
}

#[test]
fn what_is_stopped_is_said_until_it_is_over() {
    let (table, rooms) = (Table::default(), Rooms::default());
    for counter in 1..=1_000 {
        enter(&table, &rooms, counter);
    }
    assert!(table.look(|_| None).is_empty());
    assert!(table.ends().is_empty());
    let stopped = table.look(|_| Some(Reason::TokenRevoked));
    assert_eq!(stopped, BTreeMap::from([(Reason::TokenRevoked, 1_000)]));
    // Counted once, said again and again, in messages of a size.
    assert!(table.look(|_| Some(Reason::AgentInactive)).is_empty());
    for _ in 0..2 {
        let ends = table.ends();
        let sizes: Vec<usize> = ends.iter().map(|end| end.ids.len()).collect();
        assert_eq!(sizes, [512, 488]);
        assert!(ends.iter().all(|end| end.reason == "token_revoked"));
    }
    // Another prefix's request of that number is not over.
    assert!(table.over(&id(2, 1)).is_none());
    assert_eq!(table.over(&id(1, 1)).unwrap().agent, AGENT);
    assert!(table.over(&id(1, 1)).is_none());
    let left: usize = table.ends().iter().map(|end| end.ids.len()).sum();
    assert_eq!(left, 999);
}

#[test]
fn places_are_so_many_and_come_back() {
    let (table, rooms) = (Table::default(), Rooms::default());
    for counter in 0..16_384 {
        assert!(!table.is_full());
        enter(&table, &rooms, counter);
    }
    assert!(table.is_full());
    let all: Vec<Room> = std::iter::from_fn(|| rooms.take()).collect();
    assert_eq!(all.len(), OPEN_TOTAL - 16_384);
    table.over(&id(1, 5));
    assert!(!table.is_full());
    assert!(rooms.take().is_some());
}

#[test]
fn what_a_proxy_tells_is_read_in_each_way_that_it_may_be_meant() {
    let users = |user: &str| read(told(user)).map(|told| told.users);
    assert_eq!(users(""), Some(Vec::new()));
    let user = |issuer: &str, subject: &str| User {
        issuer: issuer.to_owned(),
        subject: subject.to_owned(),
    };
    assert_eq!(users("i#s"), Some(vec![user("i", "s")]));
    assert_eq!(
        users("i#j#s"),
        Some(vec![user("i", "j#s"), user("i#j", "s")])
    );
    // Whichever is stopped, it is.
    let whose = Whose::Told(Box::new(read(told("i#j#s")).unwrap()));
    for stopped in [user("i", "j#s"), user("i#j", "s")] {
        let bar = |given: &Given<'_>| {
            assert_eq!((given.at_ms, given.jkt), (5_000, Some("key")));
            assert_eq!(given.lineage, [HexHash([9; 32])]);
            (given.user == Some(&stopped)).then_some(Reason::TokenRevoked)
        };
        assert_eq!(whose.find(bar), Some(Reason::TokenRevoked));
    }
    assert_eq!(whose.find(|_| None), None);
}

#[test]
fn what_can_be_nobodys_of_ours_is_not_read() {
    type Spoil = fn(&mut OpenRequest);
    let spoil: [(&str, Spoil); 7] = [
        ("half a hash", |it| it.token_hash.truncate(16)),
        ("a long name", |it| it.agent = "a".repeat(NAME_MAX + 1)),
        ("a long name in its chain", |it| {
            it.chain = vec!["a".repeat(NAME_MAX + 1)];
        }),
        ("a long chain", |it| it.chain = vec![String::new(); 33]),
        ("a user without an issuer", |it| it.user = "ann".to_owned()),
        ("too many readings", |it| it.user = "#".repeat(9)),
        ("half a grant", |it| it.lineage = vec![vec![1; 16]]),
    ];
    for (what, spoil) in spoil {
        let mut open = told("");
        assert!(read(open.clone()).is_some());
        spoil(&mut open);
        assert!(read(open).is_none(), "{what}");
    }
}

/// What a proxy that was cut off tells of when it is back.
#[tokio::test]
async fn a_persons_stop_of_a_token_is_known_when_a_proxy_comes_back_hours_later() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(1_790_000_000_000));
    let clock = {
        let now = Arc::clone(&now);
        Arc::new(move || now.load(Ordering::SeqCst))
    };
    let options = ledger::Options::new(dir.path(), clock);
    let (ledger, _) = ledger::Ledger::open(options).unwrap();
    let began_ms = ledger.now();
    let open = OpenRequest {
        issued_s: began_ms / 1000,
        ..told("")
    };
    let whose = Whose::Told(Box::new(read(open).unwrap()));
    let stop = Command::Stop {
        target: Target::Token([7; 32]),
        by: "alice".to_owned(),
        why: String::new(),
        until_ms: Some(crate::approval::kept_until(0, began_ms)),
        stopper: ledger::model::Stopper::Person,
    };
    ledger.commit(stop).await.unwrap();
    for (after_s, is_known) in [(0, true), (601, true), (86_399, true), (86_401, false)] {
        now.store(began_ms + after_s * 1000, Ordering::SeqCst);
        // What is over is forgotten with the next entry.
        let body = serde_json::json!({});
        let entry = Command::Note {
            kind: "proxy",
            body,
        };
        ledger.commit(entry).await.unwrap();
        let rights = ledger.rights();
        let bar = |given: &Given<'_>| {
            let bar = rights.bar(given, ledger.now());
            bar.map(|_| Reason::TokenRevoked)
        };
        assert_eq!(whose.find(bar).is_some(), is_known, "{after_s} s");
    }
}
