mod beside;
mod federated;
mod issuers;
mod keys;
mod origins;

use super::*;

const GOOD: &str = r#"
[server]
issuer = "http://127.0.0.1:8480"
listen = "127.0.0.1:8480"
grpc_listen = "127.0.0.1:8481"
data_dir = "/var/lib/writ"
admin_socket = "/run/writ/admin.sock"

[identity]
workload_api = "/run/writ/workload.sock"
trust_domain = "writ.example"
control_plane_id = "spiffe://writ.example/control-plane"

[[identity.workload]]
spiffe_id = "spiffe://writ.example/proxy"
uid = 1000

[[proxy]]
spiffe_id = "spiffe://writ.example/proxy"

[[agent]]
spiffe_id = "spiffe://writ.example/agent/demo"
owner = "platform@example.com"

[[approver]]
name = "operator"

[edge]
listen = "127.0.0.1:8400"
origin = "http://127.0.0.1:8400"
module = "/usr/lib/writ/filter.wasm"

[[edge.route]]
name = "files"
path_prefix = "/"
upstream = "127.0.0.1:9000"

[policy]
files = ["policy.cedar"]
"#;

fn parse(text: &str) -> Result<Config, Vec<ConfigError>> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("policy.cedar"),
        "permit(principal, action, resource);",
    )
    .unwrap();
    Config::parse(&dir.path().join("writ.toml"), text)
}

/// The problem that says this.
fn said<'e>(errors: &'e [ConfigError], wanted: &str) -> &'e ConfigError {
    let mut saying = errors.iter().filter(|it| it.to_string().contains(wanted));
    let found = saying.next();
    found.unwrap_or_else(|| panic!("{wanted}: {errors:?}"))
}

#[test]
fn a_good_file_has_the_documented_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.token.lifetime_s, 30);
    assert_eq!(config.edge.hold_s, 25);
    assert_eq!(config.limits.outstanding_per_agent, 1024);
    assert!(!config.identity.dev_single_uid);
    assert!(!config.server.plaintext_grpc);
}

#[test]
fn the_person_of_login_as_administers_where_no_list_says_who() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.server.admins, ["operator"]);
    let listed = GOOD.replace("[identity]", "admins = [\"ann\", \"bob\"]\n[identity]");
    let config = parse(&listed).unwrap();
    assert!(config.is_admin("bob") && !config.is_admin("operator"));
    assert!(["ann", "operator"].iter().all(|it| config.may_sign_in(it)));
    assert!(!config.may_sign_in("carol"));
}

#[test]
fn owners_are_those_that_are_listed_or_whom_the_config_names_elsewhere() {
    let names = |text: &str| {
        let config = parse(text).unwrap();
        let known = config.known_owners();
        known.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    let groups = GOOD.replace("[edge]", "groups = [\"platform\"]\n[edge]");
    let wanted = ["operator", "platform", "platform@example.com"];
    assert_eq!(names(&groups), wanted);
    let owner = |name: &str| format!("[[owner]]\nname = \"{name}\"\n");
    let own = owner("platform@example.com");
    let listed = groups.replace("[[agent]]", &format!("{}{own}[[agent]]", owner("z")));
    assert_eq!(names(&listed), ["platform@example.com", "z"]);
    // Each agent is judged, where it stands.
    let second = "[[agent]]\nspiffe_id = \"spiffe://writ.example/agent/b\"\nowner = \"b\"\n[edge]";
    let text = listed.replace("[edge]", second);
    let errors = parse(&text).unwrap_err();
    let line = 1 + text.lines().position(|it| it == "owner = \"b\"").unwrap();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(
        (errors[0].line, errors[0].message.as_str()),
        (line, "agent.owner: `b` is no [[owner]]")
    );
    // Many are not all told.
    let many: String = (10..30).map(|n| owner(&format!("o{n}"))).collect();
    let told = parse(&groups.replace("[[agent]]", &format!("{many}{own}[[agent]]")));
    let told = told.unwrap().told_owners();
    assert!(
        told.contains("`o17`, 13 more") && !told.contains("o18"),
        "{told}"
    );
}

#[test]
fn each_problem_is_named_with_its_line() {
    let table = [
        (
            "[[agent]]",
            "[[owner]]\nname = \"other\"\n[[agent]]",
            "agent.owner: `platform@example.com` is no [[owner]]",
        ),
        (
            "[[agent]]",
            "[[owner]]\nname = \"a\\tb\"\n[[agent]]",
            "owner.name: `a\\tb` is no name",
        ),
        (
            "[identity]",
            "admins = []\n[identity]",
            "admins: nobody could stop",
        ),
        (
            "[identity]",
            "admins = [\"ann\", \"ann\"]\n[identity]",
            "admins: one is named twice",
        ),
        (
            "[identity]",
            "admins = [\" \"]\n[identity]",
            "admins: ` ` is no name",
        ),
        (
            "[[agent]]",
            "[token]\nlifetime_s = 301\n[[agent]]",
            "301 is out of bounds: 1 to 300",
        ),
        (
            "listen = \"127.0.0.1:8480\"",
            "listen = \"nowhere\"",
            "is not an address and a port",
        ),
        ("owner = ", "onwer = ", "no such key"),
        (
            "[edge]",
            "[edge]\nclient_certificates = \"some\"",
            "is neither \"none\" nor \"required\"",
        ),
        (
            "module = ",
            "token_check = \"none\"\nmodule = ",
            "`none` is neither \"edge\" nor \"record\"",
        ),
        (
            "[edge]",
            "[edge]\nclient_certificates = \"required\"",
            "TLS ends at the listener: `http://127.0.0.1:8400` has to be https",
        ),
        (
            "[identity]",
            "mtls_url = \"http://127.0.0.1:8482\"\n[identity]",
            "client certificates need https",
        ),
        (
            "[identity]",
            "introspection = [\"tools\"]\n[identity]",
            "`tools` is not a SPIFFE ID",
        ),
        (
            "[identity]",
            "introspection = [\"spiffe://a/b\", \"spiffe://a/b\"]\n[identity]",
            "one is named twice",
        ),
        (
            "[identity]",
            "mtls_listen = \"127.0.0.1:8480\"\n[identity]",
            "another listener has this port already",
        ),
        (
            "path_prefix = \"/\"",
            "path_prefix = \"/\"\nmode = \"observe\"\nnonce = true",
            "so no client would be told a nonce",
        ),
        (
            "module = ",
            "nonce_s = 0\nmodule = ",
            "0 is out of bounds: 1 to 300",
        ),
        (
            "owner = \"platform@example.com\"",
            "owner = 7",
            "a string is wanted",
        ),
        ("uid = 1000", "", "an entry needs `uid`"),
        (
            "spiffe://writ.example/agent/demo",
            "spiffe://writ.example/agent/../demo",
            "is not a SPIFFE ID",
        ),
        (
            "\"http://127.0.0.1:8400\"",
            "\"http://127.0.0.1:8400/\"",
            "nothing after",
        ),
        (
            "upstream = \"127.0.0.1:9000\"",
            "upstream = \"127.0.0.1\"",
            "is not like files.internal:9000",
        ),
        ("policy.cedar", "absent.cedar", "can't read the policy file"),
        (
            "name = \"operator\"",
            "name = \"somebody\"",
            "is no [[approver]]",
        ),
        (
            "path_prefix = \"/\"",
            "path_prefix = \"files\"",
            "starts with `/`",
        ),
        ("uid = 1000", "uid = -1", "out of bounds"),
        ("127.0.0.1:8400", "127.0.0.1:0", "an address and a port"),
        ("127.0.0.1:8481", "127.0.0.1:8480", "has this port already"),
        ("127.0.0.1:8481", "0.0.0.0:8480", "has this port already"),
        ("\"127.0.0.1:8400", "\"127.0.0.1:8480", "listens on"),
        (
            "/run/writ/admin.sock",
            "/run/writ/workload.sock",
            "same socket",
        ),
        (
            "spiffe://writ.example/control-plane",
            "spiffe://other.example/control-plane",
            "is not in the trust domain",
        ),
        (
            "\"writ.example\"",
            "\"Writ Example\"",
            "trust domain's name",
        ),
        (
            "name = \"files\"",
            "name = \"a b\"",
            "letters that don't belong",
        ),
        (
            "path_prefix = \"/\"",
            "path_prefix = \"/a%2f\"",
            "path prefix",
        ),
        (
            "[policy]",
            "[[edge.route]]\nname = \"files\"\npath_prefix = \"/b\"\nupstream = \"a:1\"\n[policy]",
            "another route has",
        ),
        (
            "\"127.0.0.1:8480\"\ngrpc",
            "\"0.0.0.0:8480\"\ngrpc",
            "loopback only",
        ),
        ("[policy]", "[policy", "expected"),
    ];
    for (from, to, message) in table {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "the case changes nothing: {from}");
        let errors = parse(&text).expect_err(message);
        let hit = said(&errors, message);
        assert!(hit.line > 0, "{hit}");
    }
}

#[test]
fn all_problems_come_at_once() {
    let text = GOOD
        .replace("8480\"\nlisten", "8480/\"\nlisten")
        .replace("uid = 1000", "uid = \"x\"")
        .replace("\"files\"", "7");
    assert!(parse(&text).unwrap_err().len() >= 3);
}

#[test]
fn a_proxy_shares_its_uid_with_no_other_workload() {
    let agent = "[[identity.workload]]\nspiffe_id = \"spiffe://writ.example/agent/demo\"\nuid = 1000\nexecutable = \"/bin/sh\"\n[[proxy]]";
    let shared = GOOD.replacen("[[proxy]]", agent, 1);
    let errors = parse(&shared).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let said = errors[0].to_string();
    for part in ["writ.example/proxy", "agent/demo", "uid 1000", "of its own"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(errors[0].line > 0, "{said}");
    let with =
        |to: &str| parse(&shared.replacen("[identity]\n", &format!("[identity]\n{to}\n"), 1));
    assert!(with("dev_single_uid = true").is_ok());
    assert!(with("built_in = false").is_ok(), "attested by SPIRE");
    // Of its own, or with another entry of its own, it may be.
    assert!(parse(&shared.replacen("uid = 1000", "uid = 1001", 1)).is_ok());
    assert!(parse(&shared.replacen("agent/demo", "proxy", 1)).is_ok());
}

#[test]
fn a_uid_that_is_out_of_bounds_is_not_said_to_be_missing() {
    let errors = parse(&GOOD.replacen("uid = 1000", "uid = -1", 1)).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn what_a_start_needs_on_this_machine_is_looked_at_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let quoted = |name: &str| format!("{:?}", path(name));
    std::fs::write(path("policy.cedar"), "permit(principal, action, resource);").unwrap();
    std::fs::write(path("whole.wasm"), b"\0asm\x01\0\0\0\0\x02\x01a").unwrap();
    std::fs::write(path("cut.wasm"), b"\0asm\x01\0\0\0\0\x04\x01a").unwrap();
    std::fs::create_dir(path("open")).unwrap();
    let read = |module: &str, data: &str| {
        let text = GOOD
            .replacen("\"/usr/lib/writ/filter.wasm\"", &quoted(module), 1)
            .replacen("\"/var/lib/writ\"", &quoted(data), 1);
        std::fs::write(path("writ.toml"), text).unwrap();
        Config::read_to_serve(&path("writ.toml"))
    };
    assert!(read("whole.wasm", "data/below").is_ok());
    let both = read("none.wasm", "whole.wasm/data").unwrap_err();
    let said: Vec<String> = both.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    for (at, words) in ["data_dir: can't make", "edge.module: can't read"]
        .iter()
        .enumerate()
    {
        assert!(said[at].contains(words) && both[at].line > 0, "{said:?}");
    }
    for (module, data, words) in [
        ("cut.wasm", "data", "is damaged at byte 8"),
        ("policy.cedar", "data", "wasm"),
        ("whole.wasm", "open", "make it 0700"),
        ("whole.wasm", "policy.cedar", "is not a directory"),
    ] {
        let errors = read(module, data).unwrap_err();
        assert!(errors[0].to_string().contains(words), "{errors:?}");
    }
    let mut left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            "cut.wasm",
            "open",
            "policy.cedar",
            "whole.wasm",
            "writ.toml"
        ]
    );
}

#[test]
fn a_schedule_of_keys_is_for_one_replica_or_a_shared_directory() {
    let with = |keys: &str, store: &str| {
        let store = if store.is_empty() {
            String::new()
        } else {
            format!("[ledger]\nstore = \"{store}\"\n")
        };
        parse(&format!("{GOOD}\n[keys]\n{keys}\n{store}"))
    };
    assert_eq!(parse(GOOD).unwrap().keys.rotate_every_days, 0);
    let keys = with("rotate_every_days = 90", "").unwrap().keys;
    assert_eq!((keys.rotate_every_days, keys.shared), (90, false));
    let store = "postgres://h/d";
    assert!(with("rotate_every_days = 0", store).is_ok());
    assert!(with("rotate_every_days = 90\nshared = true", store).is_ok());
    let errors = with("rotate_every_days = 90", store).unwrap_err();
    let error = said(&errors, "say keys.shared = true");
    let line = GOOD.lines().count() + 3;
    assert_eq!(error.line, line, "{error}");
    for bad in [
        "rotate_every_days = 3651",
        "rotate_every_days = -1",
        "every = 1",
    ] {
        let errors = with(bad, "").unwrap_err();
        assert!(errors.iter().all(|it| it.line == line), "{errors:?}");
    }
}
