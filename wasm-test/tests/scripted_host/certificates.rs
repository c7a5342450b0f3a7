//! The connection's client certificate, by the connection's own properties.

use super::certificate::{Parts, names, pem, uri, usage};
use super::fixtures::{AGENT, Headers, configuration};
use super::vm::{Vm, allow};
use super::world::World;
use capability::sha256;
use decision_api::{Ask, Question};
use prost::Message;
use serde_json::json;

fn ready() -> Vm {
    let mut settings = configuration();
    settings["client_certificates"] = json!("required");
    Vm::ready_with(World::default(), &settings)
}

/// The leaf of an X.509-SVID with these URIs.
fn leaf(uris: &[&str]) -> Vec<u8> {
    let uris: Vec<Vec<u8>> = uris.iter().map(|it| uri(it.as_bytes())).collect();
    let parts = Parts {
        extensions: vec![names(&uris), usage(0x80)],
        ..Parts::default()
    };
    parts.certificate()
}

/// From now on requests come on this connection.
fn connect(vm: &mut Vm, id: Option<u64>, certificate: Option<&str>) {
    let connection = &mut vm.world().connection;
    connection.clear();
    if let Some(id) = id {
        connection.insert("connection.id".to_owned(), id.to_le_bytes().to_vec());
    }
    if let Some(pem) = certificate {
        let name = "connection.peer_certificate".to_owned();
        connection.insert(name, pem.as_bytes().to_vec());
    }
}

fn question(ask: &Ask) -> Question {
    Question::decode(ask.question.as_slice()).unwrap()
}

#[test]
fn the_agents_own_certificate_passes_and_the_question_names_it() {
    let mut vm = ready();
    let der = leaf(&[AGENT]);
    connect(&mut vm, Some(7), Some(&pem(&der)));
    let context = vm.request(&Headers::good("/files/a", "t-1"));
    let ask = vm.asked();
    assert_eq!(question(&ask).peer_certificate, sha256(&der));
    vm.answer(&ask, allow());
    assert_eq!(vm.http(context).resumed, 1);
}

#[test]
fn anybody_elses_is_refused_and_none_is_missing() {
    let mut vm = ready();
    let other = "spiffe://writ.example/agent/other";
    let (own, twice) = (leaf(&[AGENT]), leaf(&[AGENT, AGENT]));
    let table: Vec<(&str, Option<String>, &str)> = vec![
        ("none", None, "certificate_missing"),
        (
            "another agent's",
            Some(pem(&leaf(&[other]))),
            "certificate_mismatch",
        ),
        (
            "two names",
            Some(pem(&leaf(&[AGENT, other]))),
            "certificate_mismatch",
        ),
        ("one name twice", Some(pem(&twice)), "certificate_mismatch"),
        ("no name", Some(pem(&leaf(&[]))), "certificate_mismatch"),
        (
            "a chain",
            Some(format!("{0}{0}", pem(&own))),
            "certificate_mismatch",
        ),
        ("no PEM", Some(AGENT.to_owned()), "certificate_mismatch"),
        ("nothing", Some(String::new()), "certificate_missing"),
    ];
    for (at, (what, certificate, reason)) in table.into_iter().enumerate() {
        connect(&mut vm, u64::try_from(at).ok(), certificate.as_deref());
        // What the client says of itself in headers counts for nothing.
        let claim = format!("URI={AGENT}");
        let headers = Headers::good("/files/a", &format!("t-{at}"));
        let context = vm.request(&headers.with("x-forwarded-client-cert", claim));
        assert!(
            vm.http(context).reply.is_some(),
            "{what}: it is asked about"
        );
        vm.assert_refused(context, 401, reason);
    }
}

#[test]
fn where_none_is_demanded_none_is_read() {
    let mut vm = Vm::ready();
    connect(&mut vm, Some(1), Some(&pem(&leaf(&[AGENT]))));
    vm.request(&Headers::good("/files/a", "t-1"));
    let ask = vm.asked();
    assert!(question(&ask).peer_certificate.is_empty());
    assert_eq!(vm.world().certificates_read.get(), 0);
}

#[test]
fn a_certificate_is_read_once_for_each_connection_and_so_many_are_kept() {
    const KEPT: u64 = 1_024;
    let mut vm = ready();
    let certificate = pem(&leaf(&[AGENT]));
    let mut reads = |id: Option<u64>| {
        connect(&mut vm, id, Some(&certificate));
        let context = vm.request(&Headers::bare("/files/a"));
        vm.assert_refused(context, 401, "missing_credentials");
        vm.end(context);
        vm.world().certificates_read.get()
    };
    assert_eq!((reads(Some(1)), reads(Some(1)), reads(Some(2))), (1, 1, 2));
    // Without an id nothing is remembered.
    assert_eq!((reads(None), reads(None)), (3, 4));
    for id in 3..=KEPT {
        reads(Some(id));
    }
    let all = usize::try_from(KEPT).unwrap() + 2;
    assert_eq!((reads(Some(1)), reads(Some(KEPT))), (all, all));
    // One more, and the oldest is read again.
    assert_eq!((reads(Some(KEPT + 1)), reads(Some(1))), (all + 1, all + 2));
}
