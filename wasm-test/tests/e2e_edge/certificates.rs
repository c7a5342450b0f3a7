//! A listener that demands client certificates, as its users meet it. What must
//! not get through it is group D of `cargo xtask attack`.

use std::path::Path;

use serde_json::Value;
use wasm_test::client::{Answer, http_client};
use wasm_test::stage::{Stage, text_at};
use wasm_test::system::{AGENT, Options, System, until};
use wasm_test::upstream::REPORT;

pub async fn start(extra_config: &str) -> Stage {
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e_edge/policy.cedar");
    let options = Options {
        client_certificates: true,
        policy: Some(policy),
        extra_config: extra_config.to_owned(),
        ..Options::default()
    };
    let system = System::for_test(options).await.unwrap();
    let agent = system.agent().await.unwrap();
    system.settled().await.unwrap();
    Stage { system, agent }
}

#[tokio::test(flavor = "multi_thread")]
async fn writ_call_shows_its_certificate_and_its_token_is_bound_to_that() {
    let stage = start("").await;
    let before = stage.arrived().unwrap();
    let url = stage.agent.url(REPORT);
    assert!(url.starts_with("https://"));
    let mut command = stage.system.writ();
    let output = command.args(["call", &url]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(stage.arrived().unwrap(), before + 1);
    let last = |kind: &str| {
        let entries = stage.entries().unwrap();
        let mut entries = entries.into_iter().rev();
        entries
            .find(|entry| text_at(entry, "/kind") == kind)
            .unwrap()
    };
    let x5t = text_at(&last("issue"), "/body/token/x5t");
    assert_eq!(x5t.len(), 43);
    assert_eq!(text_at(&last("allow"), "/body/request/certificate"), x5t);

    // How it found the endpoint that sees certificates.
    let metadata = format!(
        "{}/.well-known/oauth-authorization-server",
        stage.system.issuer()
    );
    let metadata: Value = http_client()
        .get(&metadata)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let bound = &metadata["tls_client_certificate_bound_access_tokens"];
    assert_eq!(bound, &Value::Bool(true));
    let alias = text_at(&metadata, "/mtls_endpoint_aliases/token_endpoint");
    assert_eq!(alias, format!("{}/oauth2/token", stage.system.mtls_url()));
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listeners_certificate_is_rotated_without_a_restart() {
    let stage = start("[identity]\nsvid_ttl_s = 10\n").await;
    let (envoys, admin) = (stage.system.envoy_pids(), stage.system.admin_url());
    let serials = async || -> String {
        let answer = http_client().get(format!("{admin}/certs")).send().await;
        answer.unwrap().text().await.unwrap()
    };
    let first = serials().await;
    let passes = async || {
        // A connection of its own, so that there is a handshake.
        let agent = stage.system.agent().await.unwrap();
        agent.call("GET", REPORT).await.unwrap().status
    };
    assert_eq!(passes().await, 200);
    until("Envoy has another certificate", || async {
        serial_numbers(&serials().await) != serial_numbers(&first)
    })
    .await
    .unwrap();
    assert_eq!(passes().await, 200);
    assert_eq!(stage.system.envoy_pids(), envoys);
    stage.stop().await;
}

/// The canary gets as far as a spent token can: a round that ends at the handshake,
/// or for want of a certificate, would be no clear answer, and three an alarm.
#[tokio::test(flavor = "multi_thread")]
async fn the_canary_shows_the_control_planes_own_certificate() {
    let stage = start("[canary]\nevery_s = 1\n").await;
    let refused = || {
        let entries = stage.entries().unwrap();
        let all = entries.into_iter().filter(|entry| {
            text_at(entry, "/kind") == "question_refused"
                && text_at(entry, "/body/reason") == "token_spent"
                && text_at(entry, "/body/request/path").ends_with("/.writ-canary")
                && !text_at(entry, "/body/request/certificate").is_empty()
        });
        all.count()
    };
    until("five rounds of the canary", || async { refused() >= 5 })
        .await
        .unwrap();
    // Before Envoy was up there was no clear answer either; that is over.
    let told = |event: &str| {
        let entries = stage.entries().unwrap().into_iter();
        let all = entries.filter(|entry| text_at(entry, "/kind") == "canary");
        all.filter(|entry| text_at(entry, "/body/event") == event)
            .count()
    };
    assert_eq!(told("alarm"), told("over"));
    stage.stop().await;
}

/// The serial numbers of leaves that name a host, which the listener's does.
fn serial_numbers(certs: &str) -> Vec<String> {
    let certs: Value = serde_json::from_str(certs).unwrap();
    let all = certs["certificates"].as_array().unwrap().iter();
    let chains = all.filter_map(|it| it["cert_chain"].as_array());
    chains
        .flatten()
        .filter(|leaf| leaf.to_string().contains("127.0.0.1"))
        .map(|leaf| text_at(leaf, "/serial_number"))
        .collect()
}

/// With its X.509-SVID an agent needs no other evidence (RFC 6749, section 4.4, by
/// RFC 8705): its key is proven by the connection, and can't be stolen from a log.
#[tokio::test(flavor = "multi_thread")]
async fn an_x509_svid_alone_is_evidence() {
    let stage = start("").await;
    let (system, base) = (&stage.system, stage.system.mtls_url());
    let agent = system.agent().await.unwrap().with_token_endpoint(&base);
    let authority = system.authority().unwrap();
    let own = authority.client(Some(&authority.svid(AGENT).unwrap()));
    let own = own.unwrap();
    let agent = agent.with_client(own.clone());
    let details = agent.details("GET", REPORT).to_string();
    let ask = async |client: &reqwest::Client, base: &str, form: &[(&str, &str)]| {
        let url = format!("{base}/oauth2/token");
        let proof = agent.key().proof("POST", &url, None);
        let form = [&[("authorization_details", details.as_str())], form].concat();
        let request = client.post(&url).header("dpop", proof).form(&form);
        Answer::read(request.send().await.unwrap()).await.unwrap()
    };
    let grant = ("grant_type", "client_credentials");

    let answer = ask(&own, &base, &[grant, ("client_id", AGENT)]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["token_type"], "DPoP");
    assert!(body.get("issued_token_type").is_none(), "{body}");
    let token = body["access_token"].as_str().unwrap();
    // Nor to ask about its token, and to revoke one.
    let about = async |endpoint: &str, token: &str| {
        let url = format!("{base}/oauth2/{endpoint}");
        let request = own.post(&url).form(&[("token", token)]);
        Answer::read(request.send().await.unwrap()).await.unwrap()
    };
    let known = about("introspect", token).await.json();
    assert_eq!(known["active"], true, "{known}");
    assert_eq!(text_at(&known, "/cnf/x5t#S256").len(), 43);
    let gone = ask(&own, &base, &[grant]).await.json();
    let gone = gone["access_token"].as_str().unwrap();
    assert_eq!(about("revoke", gone).await.status, 200);
    assert_eq!(about("introspect", gone).await.json()["active"], false);
    let refused = agent.present("GET", REPORT, gone).await.unwrap();
    assert_eq!(refused.reason(), "token_revoked", "{}", refused.text());
    let before = stage.arrived().unwrap();
    let acted = agent.present("GET", REPORT, token).await.unwrap();
    assert_eq!(acted.status, 200, "{}", acted.text());
    assert_eq!(stage.arrived().unwrap(), before + 1);

    let (svid, jwt) = (
        agent.svid().await.unwrap(),
        "urn:ietf:params:oauth:token-type:jwt",
    );
    type Form<'f> = Vec<(&'f str, &'f str)>;
    let table: [(&str, Form<'_>, &str, &str); 5] = [
        (
            "another's name",
            vec![grant, ("client_id", "spiffe://writ.example/agent/other")],
            "invalid_request",
            "another workload's",
        ),
        (
            "two kinds of evidence",
            vec![grant, ("subject_token", &svid)],
            "invalid_request",
            "`subject_token` goes with",
        ),
        (
            "a type of none",
            vec![grant, ("subject_token_type", jwt)],
            "invalid_request",
            "`subject_token_type` goes with",
        ),
        (
            "a scope",
            vec![grant, ("scope", "all")],
            "invalid_scope",
            "scopes are not used",
        ),
        (
            "an assertion",
            vec![grant, ("client_assertion", &svid)],
            "invalid_request",
            "client_assertion_type is missing",
        ),
    ];
    for (what, form, error, text) in table {
        let answer = ask(&own, &base, &form).await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert_eq!(answer.oauth_error(), error, "{what}");
        assert!(answer.text().contains(text), "{what}: {}", answer.text());
    }
    // What has ended while its connection has not is no evidence, and binds nothing.
    let short = authority.changed(AGENT, |parameters| {
        parameters.not_after = time::OffsetDateTime::now_utc() + time::Duration::seconds(4);
        Ok(())
    });
    let short = authority.client(Some(&short.unwrap())).unwrap();
    let both = [
        vec![grant],
        vec![
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("subject_token", &svid),
            ("subject_token_type", jwt),
        ],
    ];
    for form in &both {
        let answer = ask(&short, &base, form).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    for form in &both {
        let answer = ask(&short, &base, form).await;
        assert_eq!(answer.oauth_error(), "invalid_request", "{form:?}");
        assert_eq!(answer.reason(), "token_expired", "{}", answer.text());
    }

    // Who shows none gets none, and one who is not registered is refused by name.
    let answer = ask(&http_client(), &system.issuer(), &[grant]).await;
    assert_eq!(answer.oauth_error(), "unsupported_grant_type");
    assert!(
        answer.text().contains("show an X.509-SVID"),
        "{}",
        answer.text()
    );
    let stranger = authority
        .svid("spiffe://writ.example/agent/nobody")
        .unwrap();
    let stranger = authority.client(Some(&stranger)).unwrap();
    let answer = ask(&stranger, &base, &[grant]).await;
    assert_eq!(answer.oauth_error(), "access_denied", "{}", answer.text());

    let metadata = format!("{}/.well-known/oauth-authorization-server", system.issuer());
    let metadata = http_client().get(&metadata).send().await.unwrap();
    let metadata: Value = metadata.json().await.unwrap();
    let grants = metadata["grant_types_supported"].to_string();
    assert!(grants.contains("client_credentials"), "{grants}");
    for (name, path) in [("introspection", "introspect"), ("revocation", "revoke")] {
        let alias = &metadata["mtls_endpoint_aliases"][format!("{name}_endpoint")];
        assert_eq!(*alias, format!("{base}/oauth2/{path}"));
        let methods = metadata[format!("{name}_endpoint_auth_methods_supported")].to_string();
        assert!(methods.contains("tls_client_auth"), "{methods}");
    }
    stage.stop().await;
}
