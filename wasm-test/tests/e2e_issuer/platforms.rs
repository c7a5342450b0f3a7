//! Workloads of platforms that know nothing of SPIFFE: a pod of Kubernetes with its
//! projected service account token, and a job of GitHub Actions. The tokens have the
//! claims that those platforms document, signed by an issuer that others wrote.

use std::path::Path;

use serde_json::{Value, json};
use wasm_test::client::now_s;
use wasm_test::system::{AGENT, Options, System};
use wasm_test::upstream::REPORT;

use crate::foreign::Foreign;
use crate::plane::{run, text};
use crate::programs::clients;
use crate::sidecar::Side;

const POD: &str = "spiffe://writ.test/agent/pod";
const JOB: &str = "spiffe://writ.test/agent/job";
const AUDIENCE: &str = "https://writ.example";

/// A system in which both are agents, of one issuer each.
async fn start(dir: &Path, cluster: &str, ci: &str) -> System {
    let policy = dir.join("policy.cedar");
    let rule = "permit (principal is Writ::Agent, action, resource) when { resource.path like \"/files/*\" };";
    std::fs::write(&policy, rule).unwrap();
    let config = format!(
        r#"
[[identity.issuer]]
issuer = "{cluster}"
audience = "{AUDIENCE}"
[[identity.issuer.agent]]
spiffe_id = "{POD}"
claims = {{ sub = "system:serviceaccount:agents:reporter", "/kubernetes.io/namespace" = "agents" }}
[[identity.issuer]]
issuer = "{ci}"
audience = "{AUDIENCE}"
[[identity.issuer.agent]]
spiffe_id = "{JOB}"
claims = {{ repository_id = "74", job_workflow_ref = "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main", environment = "prod" }}
[[owner]]
name = "platform"
[[agent]]
spiffe_id = "{AGENT}"
owner = "platform"
active = true
[[agent]]
spiffe_id = "{POD}"
owner = "platform"
active = true
[[agent]]
spiffe_id = "{JOB}"
owner = "platform"
active = true
"#
    );
    let options = Options {
        policy: Some(policy),
        extra_config: config,
        ..Options::default()
    };
    System::for_test(options).await.unwrap()
}

/// As the documentation of Kubernetes has a projected token's payload.
fn pod(over: Value) -> Value {
    let mut claims = json!({
        "aud": [AUDIENCE],
        "jti": "ea28ed49-2e11-4280-9ec5-bc3d1d84661a",
        "kubernetes.io": {
            "namespace": "agents",
            "node": { "name": "node-1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1" },
            "pod": { "name": "reporter-0", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3" },
            "serviceaccount": { "name": "reporter", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798" },
        },
        "nbf": now_s(),
        "sub": "system:serviceaccount:agents:reporter",
    });
    laid_over(&mut claims, over);
    claims
}

/// As the documentation of GitHub Actions has a job's token.
fn job(over: Value) -> Value {
    let mut claims = json!({
        "jti": "example-id", "sub": "repo:octo-org/octo-repo:environment:prod",
        "environment": "prod", "aud": AUDIENCE, "ref": "refs/heads/main",
        "sha": "example-sha", "repository": "octo-org/octo-repo",
        "repository_owner": "octo-org", "actor_id": "12", "repository_visibility": "private",
        "repository_id": "74", "repository_owner_id": "65", "run_id": "example-run-id",
        "run_number": "10", "run_attempt": "2", "runner_environment": "github-hosted",
        "actor": "octocat", "workflow": "example-workflow", "head_ref": "", "base_ref": "",
        "event_name": "workflow_dispatch", "ref_type": "branch",
        "job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
        "nbf": now_s(),
    });
    laid_over(&mut claims, over);
    claims
}

fn laid_over(claims: &mut Value, over: Value) {
    let over = over.as_object().unwrap().clone();
    claims.as_object_mut().unwrap().extend(over);
}

/// `writ call` with the token in this file: its exit code, and what it said.
async fn call(system: &System, file: &Path) -> (Option<i32>, String) {
    let mut command = system.writ();
    command.args(["call", "--identity-token"]).arg(file);
    command.arg(format!("{}{REPORT}", system.proxy_url()));
    let output = run(command).await;
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code(), said)
}

/// The agent as whom the last request came to the upstream.
fn came_as(system: &System) -> String {
    let records = system.upstream().unwrap().records().unwrap();
    let last = records.last().unwrap();
    last.header("x-writ-agent").unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_and_a_ci_job_act_by_the_token_in_their_file() {
    let Some(clients) = clients() else { return };
    let (mut cluster, mut ci) = (Foreign::start(clients).await, Foreign::start(clients).await);
    let dir = tempfile::tempdir().unwrap();
    let system = start(dir.path(), &cluster.url, &ci.url).await;
    let file = dir.path().join("token");
    let signed = |claims| json!({ "alg": "RS256", "claims": claims, "lives_s": 600 });

    let mut acted = 0;
    for (agent, token) in [
        (POD, cluster.exact(signed(pod(json!({})))).await),
        (JOB, ci.exact(signed(job(json!({})))).await),
    ] {
        std::fs::write(&file, token + "\n").unwrap();
        let (code, said) = call(&system, &file).await;
        assert_eq!(code, Some(0), "{agent}: {said}");
        assert!(said.contains("Quarterly report"), "{agent}: {said}");
        acted += 1;
        assert_eq!(came_as(&system), agent);
    }
    // Another namespace, account, repository, workflow and environment; each other's
    // issuer; and a service account token of the kind that is for the cluster's own API.
    let elsewhere = json!({ "namespace": "other", "serviceaccount": { "name": "reporter" } });
    let pods = [
        json!({ "kubernetes.io": elsewhere }),
        json!({ "sub": "system:serviceaccount:agents:other" }),
        json!({ "aud": ["https://kubernetes.default.svc.cluster.local"] }),
        json!({ "aud": [AUDIENCE, "https://kubernetes.default.svc.cluster.local"] }),
        job(json!({})),
    ];
    let jobs = [
        json!({ "repository_id": "75" }),
        json!({ "repository_id": 74 }),
        json!({ "environment": "test" }),
        json!({ "job_workflow_ref": "octo-org/octo-repo/.github/workflows/x.yml@refs/heads/x" }),
        pod(json!({})),
    ];
    let mut refused = Vec::new();
    for over in pods {
        refused.push(cluster.exact(signed(pod(over))).await);
    }
    for over in jobs {
        let mut claims = job(over);
        if claims["kubernetes.io"].is_object() {
            claims.as_object_mut().unwrap().remove("repository_id");
        }
        refused.push(ci.exact(signed(claims)).await);
    }
    for (number, token) in refused.into_iter().enumerate() {
        std::fs::write(&file, token).unwrap();
        let (code, said) = call(&system, &file).await;
        assert_eq!(code, Some(1), "{number}: {said}");
        let why = said.contains("no agent is mapped to its claims") || said.contains("its `aud`");
        assert!(why, "{number}: {said}");
    }
    std::fs::remove_file(&file).unwrap();
    let (code, said) = call(&system, &file).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no identity from `"), "{said}");
    assert_eq!(system.upstream().unwrap().arrived(), acted);

    // A sidecar reads what the platform puts there anew.
    std::fs::write(&file, cluster.exact(signed(pod(json!({})))).await).unwrap();
    let args = ["--identity-token", file.to_str().unwrap()];
    let side = Side::start(&system, &args).await;
    assert_eq!(side.get(REPORT).await.status(), 200);
    assert_eq!(came_as(&system), POD);
    std::fs::write(&file, "renewed").unwrap();
    let answer = side.get(REPORT).await;
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["reason"], "token_malformed", "{problem}");
    std::fs::write(&file, cluster.exact(signed(pod(json!({})))).await).unwrap();
    assert_eq!(side.get(REPORT).await.status(), 200);
    assert_eq!(system.upstream().unwrap().arrived(), acted + 2);
    cluster.stop().await;
    ci.stop().await;
    system.stop().await;
}
