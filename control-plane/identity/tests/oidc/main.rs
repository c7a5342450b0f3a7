//! Tokens of other issuers: what is believed, what is not, and what their keys' place is
//! asked for.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail loudly"
)]

#[path = "../common/mod.rs"]
mod common;
mod over_tls;
mod signer;
mod site;

use aws_lc_rs::signature::KeyPair as _;
use identity::oidc::{
    FetchError, ForeignError, ForeignIssuer, IssuerSettings, KeysFrom, claimed_issuer,
    may_have_keys,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpListener;

use signer::{Signer, b64, ec_jwk, rsa_jwk};
use site::Site;

const NOW: u64 = 1_790_000_000_000;
const US: &str = "https://writ.example";

fn settings(issuer: &str, keys: KeysFrom) -> IssuerSettings {
    IssuerSettings {
        issuer: issuer.to_owned(),
        audience: US.to_owned(),
        keys,
        authorities_pem: None,
        token_file: None,
        types: &[],
        unnamed: false,
        lifetime_max_ms: 3_600_000,
    }
}

/// An issuer by discovery, and its site.
async fn discovered(signer: &Signer) -> (ForeignIssuer, Site, String) {
    let (site, url) = Site::start().await;
    let document = json!({ "issuer": url, "jwks_uri": format!("{url}/keys"), "more": [1] });
    site.page("/.well-known/openid-configuration", &document);
    site.page("/keys", &signer.jwks());
    let issuer = ForeignIssuer::new(settings(&url, KeysFrom::Discovery)).unwrap();
    (issuer, site, url)
}

fn claims(issuer: &str) -> Value {
    json!({
        "iss": issuer, "aud": US, "sub": "repo:org/app:ref:refs/heads/main",
        "iat": NOW / 1000, "exp": NOW / 1000 + 300,
        "kubernetes.io": { "namespace": "prod", "a/b": "c" },
    })
}

/// A change of a JSON value: a member's new value, or none to take it out.
fn with(value: &Value, name: &str, to: Option<Value>) -> Value {
    let mut changed = value.clone();
    let members = changed.as_object_mut().unwrap();
    match to {
        Some(to) => drop(members.insert(name.to_owned(), to)),
        None => drop(members.remove(name)),
    }
    changed
}

#[tokio::test]
async fn a_token_of_each_algorithm_proves_its_claims() {
    let signer = Signer::new();
    let (issuer, _, url) = discovered(&signer).await;
    for (alg, kid) in [
        ("RS256", "rsa"),
        ("ES256", "ec"),
        ("EdDSA", "ed"),
        ("Ed25519", "ed"),
    ] {
        let token = signer.token(
            &json!({ "alg": alg, "kid": kid, "typ": "JWT" }),
            &claims(&url),
        );
        assert_eq!(claimed_issuer(&token).as_ref(), Some(&url));
        let proven = issuer.verify(&token, NOW).await;
        let proven = proven.unwrap_or_else(|error| panic!("{alg}: {error}"));
        assert_eq!(proven.issuer(), url);
        assert_eq!(proven.expires_ms(), NOW + 300_000);
        let table = [
            ("sub", Some("repo:org/app:ref:refs/heads/main")),
            ("/sub", Some("repo:org/app:ref:refs/heads/main")),
            ("/kubernetes.io/namespace", Some("prod")),
            ("/kubernetes.io/a~1b", Some("c")),
            ("/kubernetes.io", None),
            ("kubernetes.io/namespace", None),
            ("exp", None),
            ("", None),
            ("/", None),
            ("/x/y", None),
        ];
        for (name, wanted) in table {
            assert_eq!(proven.text(name), wanted, "{name:?}");
        }
        // The same token with another signature that holds is the same evidence.
        let again = signer.token(
            &json!({ "alg": alg, "kid": kid, "typ": "JWT" }),
            &claims(&url),
        );
        let again = issuer.verify(&again, NOW).await.unwrap();
        assert_eq!(again.evidence_id(), proven.evidence_id());
    }
}

/// What a logout token has in its `events` (OpenID Connect Back-Channel Logout 1.0, section 2.4).
const LOGOUT: &str = "http://schemas.openid.net/event/backchannel-logout";

#[tokio::test]
async fn what_proves_nothing_is_told_apart() {
    use ForeignError as E;
    let signer = Signer::new();
    let (issuer, _, url) = discovered(&signer).await;
    let (good, head) = (claims(&url), json!({ "alg": "RS256", "kid": "rsa" }));
    let now = NOW / 1000;
    let claim = |name: &str, to: Option<Value>| signer.token(&head, &with(&good, name, to));
    let header = |name: &str, to: Option<Value>| signer.token(&with(&head, name, to), &good);
    let whole = signer.token(&head, &good);
    let (signed, signature) = whole.rsplit_once('.').unwrap();
    let twice = format!(
        "{}.{}",
        b64(head.to_string()),
        b64(good.to_string().replacen('{', "{\"sub\":\"other\",", 1))
    );
    let twice = format!("{twice}.{}", b64(signer.sign("RS256", &twice)));
    let audience = || E::Audience {
        wanted: US.to_owned(),
    };
    let table: Vec<(&str, String, E)> = vec![
        (
            "another issuer",
            claim("iss", Some(json!("https://x.example"))),
            E::Issuer,
        ),
        (
            "the issuer with a slash",
            claim("iss", Some(json!(format!("{url}/")))),
            E::Issuer,
        ),
        (
            "another audience",
            claim("aud", Some(json!("https://x.example"))),
            audience(),
        ),
        (
            "two audiences",
            claim("aud", Some(json!([US, "https://x.example"]))),
            audience(),
        ),
        ("no audience", claim("aud", None), audience()),
        ("expired", claim("exp", Some(json!(now))), E::Expired),
        (
            "from the future",
            claim("iat", Some(json!(now + 11))),
            E::NotYetValid,
        ),
        (
            "not yet",
            claim("nbf", Some(json!(now + 11))),
            E::NotYetValid,
        ),
        (
            "too long",
            claim("exp", Some(json!(now + 3601))),
            E::Lifetime { most_s: 3600 },
        ),
        (
            "no end",
            claim("exp", None),
            E::Malformed("it has no `exp`"),
        ),
        (
            "no beginning",
            claim("iat", None),
            E::Malformed("it has no `iat`"),
        ),
        (
            "an end that is none",
            claim("exp", Some(json!("soon"))),
            E::Malformed("a time is no NumericDate"),
        ),
        (
            "a negative end",
            claim("exp", Some(json!(-1))),
            E::Malformed("a time is no NumericDate"),
        ),
        (
            "no signature",
            header("alg", Some(json!("none"))),
            E::Algorithm,
        ),
        (
            "a secret's",
            header("alg", Some(json!("HS256"))),
            E::Algorithm,
        ),
        (
            "an old one",
            header("alg", Some(json!("RS1"))),
            E::Algorithm,
        ),
        ("no algorithm", header("alg", None), E::Algorithm),
        (
            "no key",
            header("kid", None),
            E::Malformed("it names no key (`kid`)"),
        ),
        (
            "a number for a key",
            header("kid", Some(json!(7))),
            E::Malformed("it names no key (`kid`)"),
        ),
        (
            "must be understood",
            header("crit", Some(json!(["exp"]))),
            E::Malformed("it has a `crit`"),
        ),
        (
            "an access token",
            header("typ", Some(json!("at+jwt"))),
            E::Malformed("its `typ` is not JWT"),
        ),
        (
            "a proof",
            header("typ", Some(json!("dpop+jwt"))),
            E::Malformed("its `typ` is not JWT"),
        ),
        (
            "a security event",
            header("typ", Some(json!("secevent+jwt"))),
            E::Malformed("its `typ` is not JWT"),
        ),
        (
            "a logout token",
            header("typ", Some(json!("logout+jwt"))),
            E::Malformed("its `typ` is not JWT"),
        ),
        (
            "a logout token that does not say so",
            claim("events", Some(json!({ LOGOUT: {} }))),
            E::Malformed("it is a security event or a logout token (`events`)"),
        ),
        (
            "events of nothing",
            claim("events", Some(Value::Null)),
            E::Malformed("it is a security event or a logout token (`events`)"),
        ),
        (
            "a party that is a number",
            claim("azp", Some(json!(5))),
            E::Malformed("its `azp` is no text"),
        ),
        (
            "several parties",
            claim("azp", Some(json!(["app"]))),
            E::Malformed("its `azp` is no text"),
        ),
        (
            "another key",
            header("kid", Some(json!("ec"))),
            E::Signature,
        ),
        (
            "a secret key",
            header("kid", Some(json!("secret"))),
            E::KeyUnknown,
        ),
        (
            "another signature",
            format!("{signed}.{}", b64([7; 256])),
            E::Signature,
        ),
        ("no signature at all", format!("{signed}."), E::Signature),
        ("padded", format!("{signed}.{signature}="), E::Signature),
        (
            "a member twice",
            twice,
            E::Malformed("its claims are no JSON object"),
        ),
        (
            "two parts",
            signed.to_owned(),
            E::Malformed("its claims are no JSON object"),
        ),
        (
            "nothing",
            String::new(),
            E::Malformed("three parts are needed"),
        ),
        ("too large", "a".repeat(8 * 1024 + 1), E::TooLarge),
    ];
    for (what, token, wanted) in table {
        let found = issuer.verify(&token, NOW).await.map(|_| ());
        match (what, &found) {
            // Two parts may be read as a header and claims, or as too few.
            ("two parts", Err(E::Malformed(_))) => {}
            _ => assert_eq!(found, Err(wanted), "{what}"),
        }
    }
    // A key of RSA is not one for another algorithm of RSA than its own.
    let pss = signer.token(&json!({ "alg": "PS256", "kid": "rsa" }), &good);
    assert_eq!(
        issuer.verify(&pss, NOW).await.map(|_| ()),
        Err(E::Signature)
    );
    // The times hold to the edge.
    for (name, at) in [("iat", now + 10), ("nbf", now + 10), ("exp", now + 3600)] {
        let token = claim(name, Some(json!(at)));
        assert!(issuer.verify(&token, NOW).await.is_ok(), "{name} {at}");
    }
}

#[tokio::test]
async fn a_key_that_is_too_short_signs_nothing() {
    let signer = Signer::new();
    let (issuer, site, url) = discovered(&signer).await;
    // 1024 bits: the first half of a modulus will do, for nothing is to hold.
    let mut jwk = rsa_jwk("short", &signer.rsa);
    let n = signer
        .rsa
        .public_key()
        .modulus()
        .big_endian_without_leading_zero();
    jwk["n"] = json!(b64(&n[..128]));
    site.page("/keys", &json!({ "keys": [jwk] }));
    let token = signer.token(&json!({ "alg": "RS256", "kid": "short" }), &claims(&url));
    let found = issuer.verify(&token, NOW).await.map(|_| ());
    assert_eq!(found, Err(ForeignError::Signature));
}

#[tokio::test]
async fn keys_are_rotated_and_withdrawn_and_nobody_makes_us_ask_often() {
    let (old, new) = (Signer::new(), Signer::new());
    let (issuer, site, url) = discovered(&old).await;
    let head = |kid: &str| json!({ "alg": "ES256", "kid": kid });
    let token = old.token(&head("ec"), &claims(&url));
    assert!(issuer.verify(&token, NOW).await.is_ok());
    assert_eq!(site.asked(), 2, "discovery and keys");
    for _ in 0..20 {
        assert!(issuer.verify(&token, NOW).await.is_ok());
        let unknown = old.token(&head("other"), &claims(&url));
        let found = issuer.verify(&unknown, NOW + 9_999).await.map(|_| ());
        assert_eq!(found, Err(ForeignError::KeyUnknown));
    }
    assert_eq!(site.asked(), 2, "once in ten seconds");

    // A new key beside the old one is found when it is used first.
    let both = json!({ "keys": [ec_jwk("ec", &old.ec), ec_jwk("new", &new.ec)] });
    site.page("/keys", &both);
    let fresh = new.token(&head("new"), &claims(&url));
    assert!(issuer.verify(&fresh, NOW + 10_000).await.is_ok());
    assert_eq!(site.asked(), 4);
    // One that is withdrawn counts until the keys are fetched, and no longer.
    site.page("/keys", &json!({ "keys": [ec_jwk("new", &new.ec)] }));
    assert!(issuer.verify(&token, NOW + 10_000).await.is_ok());
    assert_eq!(issuer.refresh(NOW + 10_000).await.unwrap(), 1);
    let found = issuer.verify(&token, NOW + 10_000).await.map(|_| ());
    assert_eq!(found, Err(ForeignError::KeyUnknown));

    // While its place answers nothing of use, what is known stays, for a day.
    for broken in [
        "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]",
    ] {
        site.answer("/keys", broken);
        assert!(issuer.refresh(NOW + 20_000).await.is_err(), "{broken}");
        assert!(issuer.verify(&fresh, NOW + 20_000).await.is_ok());
        let unknown = old.token(&head("other"), &claims(&url));
        let found = issuer.verify(&unknown, NOW + 20_000).await;
        assert!(
            matches!(found, Err(ForeignError::Unavailable(_))),
            "{found:?}"
        );
    }
    // No keys is an answer, and not a failure: they are withdrawn.
    site.page("/keys", &json!({ "keys": [] }));
    assert_eq!(issuer.refresh(NOW + 20_000).await.unwrap(), 0);
    let found = issuer.verify(&fresh, NOW + 20_000).await.map(|_| ());
    assert_eq!(found, Err(ForeignError::KeyUnknown));
    site.page("/keys", &json!({ "keys": [ec_jwk("new", &new.ec)] }));
    assert_eq!(issuer.refresh(NOW + 10_000).await.unwrap(), 1);
    site.answer(
        "/keys",
        "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    assert!(issuer.refresh(NOW + 20_000).await.is_err());
    let day = NOW + 10_000 + 24 * 3_600_000;
    let mut late = claims(&url);
    late["iat"] = json!(day / 1000);
    late["exp"] = json!(day / 1000 + 60);
    let late = new.token(&head("new"), &late);
    let found = issuer.verify(&late, day).await;
    assert!(
        matches!(found, Err(ForeignError::Unavailable(_))),
        "{found:?}"
    );
    site.page("/keys", &json!({ "keys": [ec_jwk("new", &new.ec)] }));
    assert!(issuer.verify(&late, day + 10_000).await.is_ok());
}

#[tokio::test]
async fn a_document_that_is_not_the_issuers_own_is_not_believed() {
    let signer = Signer::new();
    let (issuer, site, url) = discovered(&signer).await;
    let keys = format!("{url}/keys");
    let long = "x".repeat(256 * 1024 + 1);
    let table = [
        (
            json!({ "issuer": "https://x.example", "jwks_uri": keys }),
            "its `issuer` is another one",
        ),
        (
            json!({ "issuer": format!("{url}/"), "jwks_uri": keys }),
            "its `issuer` is another one",
        ),
        (json!({ "issuer": url }), "it has no `jwks_uri`"),
        (
            json!({ "issuer": url, "jwks_uri": "http://10.0.0.1/keys" }),
            "neither https nor on this machine",
        ),
        (
            json!({ "issuer": url, "jwks_uri": "file:///etc/passwd" }),
            "neither https nor on this machine",
        ),
        (
            json!({ "issuer": url, "jwks_uri": keys, "more": long }),
            "it is longer than",
        ),
    ];
    for (document, wanted) in table {
        site.page("/.well-known/openid-configuration", &document);
        let error = issuer.refresh(NOW).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    let secret = json!({ "keys": [{ "kty": "oct", "kid": "a", "k": "AAAA" }] });
    let encrypts = with(&ec_jwk("a", &signer.ec), "use", Some(json!("enc")));
    let signs_only = with(&ec_jwk("a", &signer.ec), "key_ops", Some(json!(["sign"])));
    let nameless = with(&ec_jwk("a", &signer.ec), "kid", None);
    site.page(
        "/.well-known/openid-configuration",
        &json!({ "issuer": url, "jwks_uri": keys }),
    );
    for set in [
        secret,
        json!({ "keys": [encrypts] }),
        json!({ "keys": [signs_only] }),
        json!({ "keys": [nameless] }),
        json!({ "keys": vec![ec_jwk("a", &signer.ec); 65] }),
        json!({ "keys": {} }),
        json!({}),
    ] {
        site.page("/keys", &set);
        let count = issuer.refresh(NOW).await;
        let none = matches!(count, Ok(0)) || count.is_err();
        assert!(none, "{set}: {count:?}");
    }
}

#[tokio::test]
async fn keys_come_from_a_url_with_a_token_or_from_a_file() {
    let signer = Signer::new();
    let dir = tempfile::tempdir().unwrap();
    let name = "https://kubernetes.default.svc";
    let token = signer.token(&json!({ "alg": "ES256", "kid": "ec" }), &claims(name));

    let (site, url) = Site::start().await;
    site.page("/openid/v1/jwks", &signer.jwks());
    let secret = dir.path().join("token");
    std::fs::write(&secret, "a-bearer-token\n").unwrap();
    let issuer = ForeignIssuer::new(IssuerSettings {
        token_file: Some(secret),
        ..settings(name, KeysFrom::Url(format!("{url}/openid/v1/jwks")))
    });
    assert!(issuer.unwrap().verify(&token, NOW).await.is_ok());
    let asked = site.asked.lock().unwrap()[0].to_lowercase();
    assert!(
        asked.contains("authorization: bearer a-bearer-token\r\n"),
        "{asked}"
    );

    // Where discovery leads to another host, that one does not hear it.
    let (elsewhere, other) = Site::start().await;
    elsewhere.page("/keys", &signer.jwks());
    let own = signer.token(&json!({ "alg": "ES256", "kid": "ec" }), &claims(&url));
    for (at, told) in [(&url, true), (&other, false)] {
        site.page("/keys", &signer.jwks());
        let found = json!({ "issuer": url, "jwks_uri": format!("{at}/keys") });
        site.page("/.well-known/openid-configuration", &found);
        let issuer = ForeignIssuer::new(IssuerSettings {
            token_file: Some(dir.path().join("token")),
            ..settings(&url, KeysFrom::Discovery)
        });
        assert!(issuer.unwrap().verify(&own, NOW).await.is_ok());
        let asked = if told { &site.asked } else { &elsewhere.asked };
        let asked = asked.lock().unwrap().last().unwrap().to_lowercase();
        assert!(asked.starts_with("get /keys "), "{asked}");
        assert_eq!(asked.contains("a-bearer-token"), told, "{asked}");
    }

    let file = dir.path().join("keys.json");
    let issuer = ForeignIssuer::new(settings(name, KeysFrom::File(file.clone()))).unwrap();
    let found = issuer.verify(&token, NOW).await;
    assert!(
        matches!(found, Err(ForeignError::Unavailable(_))),
        "{found:?}"
    );
    std::fs::write(&file, signer.jwks().to_string()).unwrap();
    assert!(issuer.verify(&token, NOW + 10_000).await.is_ok());

    let none = ForeignIssuer::new(IssuerSettings {
        authorities_pem: Some(b"no certificate".to_vec()),
        ..settings(name, KeysFrom::Discovery)
    });
    assert!(matches!(none, Err(FetchError::Authorities(_))));
}

/// RFC 7515, section 4.1.4: `kid` may be left out. Where that is taken, the keys of the
/// token's algorithm are tried, of which there are few.
#[tokio::test]
async fn a_token_without_a_key_id_is_taken_where_there_are_few_keys() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    let name = "https://client.example";
    let signer = Signer::new();
    let token = signer.token(&json!({ "alg": "ES256" }), &claims(name));
    let with = |unnamed, keys: Vec<Value>| {
        std::fs::write(&file, json!({ "keys": keys }).to_string()).unwrap();
        let settings = settings(name, KeysFrom::File(file.clone()));
        ForeignIssuer::new(IssuerSettings {
            unnamed,
            ..settings
        })
        .unwrap()
    };
    let (own, old, older) = (Signer::new(), Signer::new(), Signer::new());
    let (rsa, ec) = (rsa_jwk("rsa", &signer.rsa), ec_jwk("ec", &signer.ec));
    let others = [ec_jwk("old", &old.ec), ec_jwk("older", &older.ec)];
    let good = [
        ("its one key", vec![ec.clone()]),
        ("beside one of another kind", vec![rsa.clone(), ec.clone()]),
        (
            "beside an older one",
            vec![others[0].clone(), ec.clone(), rsa.clone()],
        ),
    ];
    for (what, keys) in good {
        let found = with(true, keys).verify(&token, NOW).await;
        assert!(found.is_ok(), "{what}: {found:?}");
    }
    let several = [others.to_vec(), vec![ec.clone()]].concat();
    let found = with(true, several).verify(&token, NOW).await.unwrap_err();
    let why = "it names no key (`kid`), and its issuer has several";
    assert_eq!(found, ForeignError::Malformed(why));
    let none = with(true, vec![rsa]).verify(&token, NOW).await.unwrap_err();
    assert_eq!(none, ForeignError::Signature);
    let other = with(true, vec![ec_jwk("ec", &own.ec)]);
    assert_eq!(
        other.verify(&token, NOW).await.unwrap_err(),
        ForeignError::Signature
    );
    let strict = with(false, vec![ec]).verify(&token, NOW).await.unwrap_err();
    assert_eq!(strict, ForeignError::Malformed("it names no key (`kid`)"));
}

#[test]
fn keys_come_over_tls_or_from_this_machine() {
    for (url, may) in [
        ("https://idp.example/keys", true),
        ("http://127.0.0.1:8080/keys", true),
        ("http://[::1]:8080", true),
        ("http://idp.example", false),
        ("http://localhost:8080", false),
        ("http://127.0.0.1@idp.example/", false),
        ("http://127.0.0.1.idp.example/", false),
        ("http://127.0.0.1:x@idp.example/j", false),
        ("http://127.0.0.1:80@idp.example/j", false),
        ("http://[::1]@idp.example/j", false),
        ("https://u:p@idp.example/", false),
        ("https://", false),
        ("https://idp.example/\u{1b}[2J", false),
        ("https://idp.example/a\nb", false),
        ("file:///etc/passwd", false),
        ("", false),
    ] {
        assert_eq!(may_have_keys(url), may, "{url}");
    }
}

/// Whoever leaves while keys are fetched does not start another fetch, and does not
/// keep others from them.
#[tokio::test]
async fn those_who_leave_make_us_ask_no_more_often() {
    let signer = Signer::new();
    let (issuer, site, url) = discovered(&signer).await;
    let unknown = signer.token(&json!({ "alg": "ES256", "kid": "other" }), &claims(&url));
    for _ in 0..20 {
        let leaves = issuer.verify(&unknown, NOW);
        let soon = Duration::from_micros(200);
        drop(tokio::time::timeout(soon, leaves).await);
    }
    let token = signer.token(&json!({ "alg": "ES256", "kid": "ec" }), &claims(&url));
    assert!(issuer.verify(&token, NOW).await.is_ok());
    assert_eq!(site.asked(), 2, "discovery and keys, once");
}

/// Nor do they take more room than those who stay: each has a place until the fetch that
/// it waited for has ended.
#[tokio::test]
async fn those_who_leave_keep_their_places() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let issuer = ForeignIssuer::new(settings(&url, KeysFrom::Discovery)).unwrap();
    let token = Signer::new().token(&json!({ "alg": "ES256", "kid": "ec" }), &claims(&url));
    let mut turned_away = 0;
    for _ in 0..100 {
        let waits = tokio::time::timeout(Duration::from_millis(2), issuer.verify(&token, NOW));
        if let Ok(found) = waits.await {
            assert!(
                matches!(found, Err(ForeignError::Unavailable(_))),
                "{found:?}"
            );
            turned_away += 1;
        }
    }
    assert_eq!(turned_away, 100 - 64);
}
