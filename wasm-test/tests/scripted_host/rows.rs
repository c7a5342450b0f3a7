//! The rows of the gates, the OpenID Foundation's cases and JSONTestSuite, by
//! the filter itself as it is shipped: the same reason as `capability` gives.

use super::common::{ISSUER, NOW_S, ORIGIN, vectors};
use super::fixtures::{Headers, configuration};
use super::table::{Case, SITES, case, keys, rows};
use super::vm::{Vm, deny};
use super::world::World;
use capability::{Reason, b64};
use serde_json::{Value, json};

/// What the rows ask of a configuration.
fn settings(crypto: &str, record: bool) -> Value {
    let keys: Vec<Value> = keys()
        .into_iter()
        .map(|(kid, key)| {
            let mut jwk = key.to_jwk();
            jwk["kid"] = kid.into();
            jwk
        })
        .collect();
    let mut settings = configuration();
    let sites = SITES.map(|(origin, resource)| json!({"name": origin.replace(['/', ':'], ""), "origin": origin, "resource": resource}));
    let changes = json!({
        "sites": sites,
        "issuer": ISSUER, "resource": ORIGIN, "origin": ORIGIN, "keys": keys,
        "crypto": crypto, "token_check": if record { "record" } else { "edge" },
    });
    for (name, value) in changes.as_object().unwrap() {
        settings[name] = value.clone();
    }
    settings
}

/// Whether the filter can be shown this row: it has no client certificates yet,
/// and reads no bodies.
fn applies(case: &Case) -> bool {
    let reads = case.body.as_ref().is_some_and(|body| !body.is_empty());
    case.sans.is_none() && !case.require_peer && !reads
}

fn try_row(vm: &mut Vm, row: &Value, case: Case) {
    let ended = case.body.is_some();
    // Starting has taken a tick.
    vm.world().now_ns = case.now_ms * 1_000_000;
    let headers = case.headers.into_iter();
    let headers = headers.map(|(name, value)| (String::from_utf8(name).unwrap(), value));
    let context = vm.arrive(&Headers(headers.collect()), ended);
    let expected = row["expect"].as_str().unwrap();
    if expected == "ok" {
        let refusal = vm.http(context).reply.clone();
        assert!(refusal.is_none(), "{row}: {refusal:?}");
        let ask = vm.asked();
        vm.answer(&ask, deny("policy_denied"));
        vm.assert_refused(context, 403, "policy_denied");
    } else {
        assert!(vm.http(context).reply.is_some(), "{row}: it is asked about");
        let status = Reason::parse(expected).unwrap().status();
        vm.assert_refused(context, status.into(), expected);
    }
    vm.end(context);
}

fn try_all(crypto: &str, rows: Vec<Value>) -> (usize, usize) {
    let ready = |record| Vm::ready_with(World::default(), &settings(crypto, record));
    let mut common = ready(false);
    let (mut tried, mut left_out) = (0, 0);
    for row in rows {
        let case = case(&row);
        if !applies(&case) {
            left_out += 1;
            continue;
        }
        tried += 1;
        // A clock of its own, or a configuration: a VM of its own.
        if case.record || case.now_ms != NOW_S * 1000 {
            try_row(&mut ready(case.record), &row, case);
        } else {
            try_row(&mut common, &row, case);
        }
    }
    (tried, left_out)
}

#[test]
fn every_row_has_its_reason_with_the_hosts_signatures() {
    let (tried, left_out) = try_all("host", rows());
    assert!(tried > 320 && left_out <= 12, "{tried}, {left_out}");
}

#[test]
fn every_row_has_its_reason_with_portable_signatures() {
    let (tried, left_out) = try_all("portable", rows());
    assert!(tried > 320 && left_out <= 12, "{tried}, {left_out}");
}

/// Two are about more than one request, and are tried elsewhere.
#[test]
fn the_openid_foundations_cases() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../data/oidf.json")).unwrap();
    let rows = rows.into_iter().filter(|row| row["elsewhere"].is_null());
    assert_eq!(try_all("host", rows.collect()), (35, 0));
}

#[test]
fn the_188_texts_that_are_no_json_are_refused_and_the_vm_lives() {
    let Some(dir) = vectors("jsontestsuite/test_parsing") else {
        return;
    };
    let mut vm = Vm::ready();
    let mut tried = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !name.starts_with("n_") {
            continue;
        }
        tried += 1;
        let bytes = std::fs::read(entry.path()).unwrap();
        let good = br#"{"typ":"at+jwt","alg":"ES256","kid":"writ-1"}"#;
        for [header, claims] in [[&bytes[..], good], [good, &bytes[..]]] {
            let token = format!("DPoP {}.{}.AAAA", b64::encode(header), b64::encode(claims));
            let headers = Headers::bare("/files/a").with("authorization", token);
            let context = vm.request(&headers.with("dpop", "x"));
            if bytes.len() > 2048 {
                // Tens of thousands of brackets don't fit a header block, nor a token.
                vm.assert_refused(context, 431, "too_large");
            } else {
                vm.assert_refused(context, 401, "token_malformed");
            }
            vm.end(context);
        }
    }
    assert_eq!(tried, 188);
    vm.assert_serves();
}
