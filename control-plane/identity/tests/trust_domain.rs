//! The built-in trust domain's files and socket.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod common;

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use common::{Domain, TIMEOUT, entry, settings};
use identity::{BuiltIn, SpiffeId, TrustDomainError};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_private_and_outlive_a_restart() {
    let dir = TempDir::new().unwrap();
    let settings = settings(&dir);
    let bundle = BuiltIn::open(settings.clone())
        .unwrap()
        .bundle_pem()
        .to_owned();
    let jwt_key = fs::read(settings.dir.join("jwt.key")).unwrap();
    assert_eq!(mode(&settings.dir), 0o700);
    for file in ["ca.key", "ca.crt", "jwt.key"] {
        assert_eq!(mode(&settings.dir.join(file)), 0o600, "{file}");
    }
    let again = BuiltIn::open(settings.clone()).unwrap();
    assert_eq!(again.bundle_pem(), bundle);
    assert_eq!(fs::read(settings.dir.join("jwt.key")).unwrap(), jwt_key);
}

#[test]
fn an_old_authority_is_renewed_with_its_key() {
    let dir = TempDir::new().unwrap();
    let mut settings = settings(&dir);
    let bundle = BuiltIn::open(settings.clone())
        .unwrap()
        .bundle_pem()
        .to_owned();
    let key = fs::read(settings.dir.join("ca.key")).unwrap();
    let later = common::now_ms() + 9 * 366 * 24 * 3600 * 1000;
    settings.clock = std::sync::Arc::new(move || later);
    assert_ne!(
        BuiltIn::open(settings.clone()).unwrap().bundle_pem(),
        bundle
    );
    assert_eq!(fs::read(settings.dir.join("ca.key")).unwrap(), key);
}

#[test]
fn open_damaged_or_missing_keys_are_refused() {
    let dir = TempDir::new().unwrap();
    let settings = settings(&dir);
    let key = settings.dir.join("ca.key");
    let open = || BuiltIn::open(settings.clone()).map(|_| ());
    open().unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(open(), Err(TrustDomainError::NotPrivate { .. })));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&settings.dir, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(open(), Err(TrustDomainError::NotPrivate { .. })));
    fs::set_permissions(&settings.dir, fs::Permissions::from_mode(0o700)).unwrap();
    open().unwrap();

    let good = fs::read(&key).unwrap();
    fs::copy(settings.dir.join("jwt.key"), &key).unwrap();
    assert!(
        matches!(open(), Err(TrustDomainError::BadFile { .. })),
        "another key"
    );
    fs::write(&key, "junk").unwrap();
    assert!(
        matches!(open(), Err(TrustDomainError::BadFile { .. })),
        "no key"
    );
    fs::remove_file(&key).unwrap();
    assert!(matches!(open(), Err(TrustDomainError::KeyMissing { .. })));
    fs::write(&key, good).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    open().unwrap();
}

#[test]
fn another_trust_domains_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut settings = settings(&dir);
    BuiltIn::open(settings.clone()).unwrap();
    settings.name = "other.example".to_owned();
    settings.self_id = SpiffeId::parse("spiffe://other.example/control-plane").unwrap();
    let refused = BuiltIn::open(settings).map(|_| ());
    assert!(matches!(refused, Err(TrustDomainError::BadFile { .. })));
}

#[test]
fn wrong_settings_are_refused() {
    let dir = TempDir::new().unwrap();
    let refusal = |change: &dyn Fn(&mut identity::TrustDomainSettings)| {
        let mut settings = settings(&dir);
        change(&mut settings);
        BuiltIn::open(settings).map(|_| ()).unwrap_err()
    };
    assert!(matches!(
        refusal(&|settings| settings.name = "Writ".to_owned()),
        TrustDomainError::Name { .. }
    ));
    assert!(matches!(
        refusal(&|settings| settings.self_id = SpiffeId::parse("spiffe://other/a").unwrap()),
        TrustDomainError::ForeignId { .. }
    ));
    assert!(matches!(
        refusal(&|settings| settings.self_id = SpiffeId::of_trust_domain("writ.example").unwrap()),
        TrustDomainError::ForeignId { .. }
    ));
    assert!(matches!(
        refusal(&|settings| settings.entries = vec![entry("a", None, None)]),
        TrustDomainError::OpenEntry { .. }
    ));
    assert!(matches!(
        refusal(&|settings| settings.x509_ttl = Duration::from_millis(999)),
        TrustDomainError::Lifetime { .. }
    ));
    assert!(matches!(
        refusal(&|settings| settings.jwt_ttl = Duration::from_secs(3601)),
        TrustDomainError::Lifetime { .. }
    ));
    assert!(
        !dir.path().join("trust").exists(),
        "refused before anything is made"
    );
}

#[tokio::test]
async fn a_live_socket_is_left_alone_and_a_stale_one_replaced() {
    let domain = Domain::start();
    assert_eq!(mode(&domain.socket()), 0o666);
    let second = domain.built_in.serve(CancellationToken::new());
    assert!(matches!(second, Err(TrustDomainError::SocketInUse { .. })));
    domain.source().await;

    // A stream is open all the while; stopping ends it.
    domain.stop.cancel();
    tokio::time::timeout(TIMEOUT, domain.task)
        .await
        .unwrap()
        .unwrap();
    assert!(!domain.settings.socket.exists());

    // What a killed process leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&domain.settings.socket).unwrap());
    assert!(domain.settings.socket.exists());
    let stop = CancellationToken::new();
    let task = domain.built_in.serve(stop.clone()).unwrap();
    identity::Source::connect(&domain.settings.socket, TIMEOUT)
        .await
        .unwrap();
    stop.cancel();
    tokio::time::timeout(TIMEOUT, task).await.unwrap().unwrap();

    fs::write(&domain.settings.socket, "precious").unwrap();
    let in_the_way = domain.built_in.serve(CancellationToken::new());
    assert!(matches!(
        in_the_way,
        Err(TrustDomainError::NotASocket { .. })
    ));
    assert_eq!(
        fs::read_to_string(&domain.settings.socket).unwrap(),
        "precious"
    );
}
