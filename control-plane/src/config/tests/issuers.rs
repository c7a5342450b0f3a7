//! Whose tokens count beside SVIDs.

use super::*;
use ::identity::oidc::KeysFrom;

const ISSUER: &str = r#"
[[identity.issuer]]
issuer = "https://ci.example"
[[identity.issuer.agent]]
spiffe_id = "spiffe://writ.example/agent/demo"
claims = { sub = "a", "/deep/er" = "b" }
"#;

fn with(issuers: &str) -> Result<Config, Vec<ConfigError>> {
    parse(&GOOD.replace("[[proxy]]", &format!("{issuers}\n[[proxy]]")))
}

#[test]
fn an_issuer_has_the_documented_defaults() {
    let config = with(ISSUER).unwrap();
    let issuer = &config.identity.issuers[0];
    assert_eq!(issuer.audience, "http://127.0.0.1:8480", "server.issuer");
    assert_eq!(issuer.keys, KeysFrom::Discovery);
    assert_eq!(issuer.lifetime_max_s, 3600);
    assert_eq!(issuer.agents[0].claims["/deep/er"], "b");
    let place = |keys: &str| {
        let text = ISSUER.replace(
            "[[identity.issuer.agent]]",
            &format!("keys = \"{keys}\"\n[[identity.issuer.agent]]"),
        );
        with(&text).unwrap().identity.issuers[0].keys.clone()
    };
    assert_eq!(
        place("/etc/keys.json"),
        KeysFrom::File("/etc/keys.json".into())
    );
    let url = "https://ci.example/keys";
    assert_eq!(place(url), KeysFrom::Url(url.into()));
    assert!(parse(GOOD).unwrap().identity.issuers.is_empty());
}

#[test]
fn what_is_wrong_with_an_issuer_is_said_with_its_line() {
    let table = [
        (
            "https://ci.example",
            "http://ci.example",
            "is neither https:// nor an address of this machine",
        ),
        (
            "https://ci.example",
            "http://127.0.0.1:8480",
            "this is server.issuer",
        ),
        (
            "issuer = \"https",
            "keys = \"http://x.example\"\nissuer = \"https",
            "is neither https:// nor an address of this machine",
        ),
        (
            "issuer = \"https",
            "keys = \"/k\"\nca_file = \"/c\"\nissuer = \"https",
            "nothing is fetched where `keys` is a file",
        ),
        (
            "issuer = \"https",
            "lifetime_max_s = 59\nissuer = \"https",
            "59 is out of bounds",
        ),
        ("agent/demo", "agent/other", "is no [[agent]]"),
        ("agent/demo", "", "is not a SPIFFE ID"),
        (
            "{ sub = \"a\", \"/deep/er\" = \"b\" }",
            "{}",
            "without a claim that has to hold",
        ),
        ("\"a\"", "7", "a string is wanted"),
        ("\"a\"", "\"\"", "this is empty"),
        (
            "[[identity.issuer.agent]]\n",
            "",
            "neither [[identity.issuer.agent]] nor",
        ),
        ("claims", "claim", "claim: no such key"),
    ];
    for (from, to, wanted) in table {
        let text = ISSUER.replacen(from, to, 1);
        assert_ne!(text, ISSUER, "the case changes nothing: {from}");
        let errors = with(&text).map(|_| ()).unwrap_err();
        let said = said(&errors, wanted);
        assert!(said.line > 15, "{said}");
    }
    let twice = with(&ISSUER.repeat(2)).unwrap_err();
    assert!(
        twice
            .iter()
            .any(|it| it.message.contains("another issuer has this name")),
        "{twice:?}"
    );
    let same = format!(
        "{ISSUER}{}",
        ISSUER
            .split_once("[[identity.issuer.agent]]")
            .unwrap()
            .1
            .replacen("spiffe_id", "[[identity.issuer.agent]]\nspiffe_id", 1)
    );
    let same = with(&same).unwrap_err();
    assert!(
        same.iter()
            .any(|it| it.message.contains("has the same ones")),
        "{same:?}"
    );
}

const USERS: &str = r#"
[[identity.issuer]]
issuer = "https://idp.example"
[identity.issuer.users]
id_jag = true
[[identity.issuer.users.client]]
client_id = "app"
agent = "spiffe://writ.example/agent/demo"
"#;

#[test]
fn an_issuer_may_have_users_whose_tokens_are_told_apart_from_agents() {
    let config = with(USERS).unwrap();
    let users = config.identity.issuers[0].users.as_ref().unwrap();
    assert_eq!(users.audience, "http://127.0.0.1:8480", "server.issuer");
    assert!(users.id_jag && users.scopes.is_none());
    assert!(users.is_client("app", "spiffe://writ.example/agent/demo"));
    assert!(!users.is_client("app", "spiffe://writ.example/agent/other"));
    let agents = "[[identity.issuer.agent]]\nspiffe_id = \"spiffe://writ.example/agent/demo\"\nclaims = { sub = \"a\" }\n";
    let users = "[identity.issuer.users]\n";
    let table = [
        (
            users,
            format!("{agents}{users}"),
            "agents' tokens of this issuer have it",
        ),
        (
            users,
            format!("{users}audience = \"app\"\n"),
            "another client, or an audience, has this name",
        ),
        (users, format!("{users}audience = \"\"\n"), "this is empty"),
        (
            users,
            format!("{users}scope = \"x\"\n"),
            "scope: no such key",
        ),
        ("agent/demo", "agent/other".to_owned(), "is no [[agent]]"),
        ("\"app\"", "\"\"".to_owned(), "this is empty"),
        ("true", "1".to_owned(), "true or false is wanted"),
    ];
    for (from, to, wanted) in table {
        let errors = with(&USERS.replacen(from, &to, 1)).map(|_| ()).unwrap_err();
        let said = said(&errors, wanted);
        assert!(said.line > 15, "{said}");
    }
    let apart = format!("{agents}{users}audience = \"https://users.example\"\n");
    with(&USERS.replacen(users, &apart, 1)).unwrap();
}

#[test]
fn files_that_an_issuer_names_are_looked_at_before_a_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("policy.cedar"),
        "permit(principal, action, resource);",
    )
    .unwrap();
    let file = dir.path().join("writ.toml");
    let issuer = ISSUER.replace(
        "[[identity.issuer.agent]]",
        "ca_file = \"/nowhere/ca\"\ntoken_file = \"/nowhere/token\"\n[[identity.issuer.agent]]",
    );
    let text = GOOD.replace("[[proxy]]", &format!("{issuer}\n[[proxy]]"));
    std::fs::write(&file, text).unwrap();
    let errors = Config::read_to_serve(&file).map(|_| ()).unwrap_err();
    for wanted in [
        "identity.issuer.ca_file: can't read `/nowhere/ca`",
        "identity.issuer.token_file: can't read `/nowhere/token`",
    ] {
        assert!(said(&errors, wanted).line > 0, "{errors:?}");
    }
    let keys = dir.path().join("keys");
    let issuer = ISSUER.replace(
        "[[identity.issuer.agent]]",
        &format!("keys = \"{}\"\n[[identity.issuer.agent]]", keys.display()),
    );
    let text = GOOD.replace("[[proxy]]", &format!("{issuer}\n[[proxy]]"));
    std::fs::write(&file, text).unwrap();
    for (content, wanted) in [
        ("-----BEGIN PUBLIC KEY-----", "it is not one JSON object"),
        ("{\"kty\":\"EC\"}", "it has no list `keys`"),
        ("{\"keys\":[]}", "it has no key with an id"),
    ] {
        std::fs::write(&keys, content).unwrap();
        let errors = Config::read_to_serve(&file).map(|_| ()).unwrap_err();
        let said = said(&errors, wanted).to_string();
        assert!(said.contains("is no JWK set (RFC 7517)"), "{said}");
    }
}
