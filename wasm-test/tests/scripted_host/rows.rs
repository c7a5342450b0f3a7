//! The rows of the gates, the OpenID Foundation's cases and JSONTestSuite, by
//! the filter itself as it is shipped: the same reason as `capability` gives.

use super::certificate::{Parts, names, pem, uri, usage};
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

/// Whether the filter can be shown this row: it reads no bodies. The row's own
/// certificate is no DER, so what depends on its digest or its times is left to
/// the native tests.
fn applies(row: &Value, case: &Case) -> bool {
    let reads = case.body.as_ref().is_some_and(|body| !body.is_empty());
    let names_alone = row["token"]["claims"]["cnf"].is_null() && row["peer_is"].is_null();
    // Where no nonce is known there is no stream, and that is the reason.
    let asks = case.nonces.as_ref().is_none_or(|nonces| {
        let is_one = |nonce: &String| !nonce.is_empty();
        !nonces.is_empty() && nonces.iter().all(is_one)
    });
    (case.sans.is_none() || (case.require_peer && names_alone)) && !reads && asks
}

/// A filter that demands certificates, and a connection with the row's.
fn certified(crypto: &str, case: &Case) -> Vm {
    let mut settings = settings(crypto, case.record);
    settings["client_certificates"] = json!("required");
    let mut vm = Vm::ready_with(World::default(), &settings);
    if let Some(sans) = &case.sans {
        let sans: Vec<Vec<u8>> = sans.iter().map(|san| uri(san.as_bytes())).collect();
        let parts = Parts {
            extensions: vec![names(&sans), usage(0x80)],
            ..Parts::default()
        };
        vm.world().connection.insert(
            "connection.peer_certificate".to_owned(),
            pem(&parts.certificate()).into_bytes(),
        );
    }
    vm
}

/// A filter whose routes all ask for one of these nonces.
fn asking(crypto: &str, case: &Case, nonces: &[String]) -> Vm {
    let mut settings = settings(crypto, case.record);
    for route in settings["routes"].as_array_mut().unwrap() {
        route["nonce"] = json!(true);
    }
    let nonces: Vec<&str> = nonces.iter().map(String::as_str).collect();
    Vm::ready_asking(&settings, &nonces)
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
        if !applies(&row, &case) {
            left_out += 1;
            continue;
        }
        tried += 1;
        // A clock of its own, or a configuration: a VM of its own.
        if let Some(nonces) = &case.nonces {
            try_row(&mut asking(crypto, &case, nonces), &row, case);
        } else if case.require_peer {
            try_row(&mut certified(crypto, &case), &row, case);
        } else if case.record || case.now_ms != NOW_S * 1000 {
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
    assert!(tried > 340 && left_out <= 15, "{tried}, {left_out}");
}

#[test]
fn every_row_has_its_reason_with_portable_signatures() {
    let (tried, left_out) = try_all("portable", rows());
    assert!(tried > 340 && left_out <= 15, "{tried}, {left_out}");
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
