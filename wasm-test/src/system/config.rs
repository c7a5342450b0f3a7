//! The files that a system starts from: the control plane's config, the
//! policy, the filter module, Envoy's bootstrap.

use std::path::Path;

use rustix::process::getuid;
use serde_json::json;
use toml::{Table, Value};

use super::{AGENT, PROXY, System};
use crate::Error;
use crate::cut::Cut;

/// The policy of the demo, below the repository's root.
const STARTER_POLICY: &str = "deploy/starter/policy.cedar";
/// The bootstrap that users copy, below the repository's root.
const BOOTSTRAP: &str = "envoy/bootstrap.yaml";

/// Writes all of them into the state directory.
pub fn write(system: &System) -> Result<(), Error> {
    let starter = system.tools.root.join(STARTER_POLICY);
    let policy = system.options.policy.as_ref().unwrap_or(&starter);
    copy(policy, &system.dir.policy())?;
    // A copy, so that a test can replace its system's module and no other's.
    let module = system.options.module.as_ref();
    copy(
        module.unwrap_or(&system.tools.filter_wasm),
        &system.dir.module(),
    )?;
    if system.options.guard_from_file {
        system.write_guard("0", &super::variants::refusing())?;
    }
    put(&system.dir.config(), &control_plane(system)?)?;
    for index in 0..system.envoys.count() {
        let text = bootstrap(system, index)?;
        put(&system.dir.bootstrap_of(index), &text)?;
    }
    Ok(())
}

fn control_plane(system: &System) -> Result<String, Error> {
    let mut config = parse(&base(system))?;
    if system.options.client_certificates {
        let (port, url) = (system.mtls_port, system.mtls_url());
        let over = format!(
            r#"
[server]
mtls_listen = "127.0.0.1:{port}"
mtls_url = "{url}"
[edge]
client_certificates = "required"
"#
        );
        merge(&mut config, parse(&over)?);
    }
    let shared = system.options.beside.as_ref().map(|beside| beside.upstream);
    let upstream = shared.unwrap_or(system.ports.upstream);
    let extra = system.options.extra_config.as_str();
    let mut extra = extra.replace("{upstream}", &format!("127.0.0.1:{upstream}"));
    if let Some(variant) = system.variants.last() {
        extra = extra.replace("{variant}", &variant.address());
    }
    merge(&mut config, parse(&extra)?);
    toml::to_string(&config).map_err(|problem| Error::Setup(problem.to_string()))
}

fn base(system: &System) -> String {
    let uid = getuid().as_raw();
    let quoted = |path: &Path| Value::from(path.display().to_string()).to_string();
    let (http, grpc) = (system.ports.http, system.ports.grpc);
    let (issuer, origin) = (system.issuer(), system.origin());
    let proxy = system.ports.proxy;
    let shared = system.options.beside.as_ref().map(|beside| beside.upstream);
    let upstream = shared.unwrap_or(system.ports.upstream);
    let data = quoted(&system.dir.data());
    let admin_socket = quoted(&system.admin_socket());
    let workload_api = quoted(&system.workload_api());
    let envoy = quoted(&system.tools.envoy);
    let module = quoted(&system.dir.module());
    let lifetime_s = system.options.token_lifetime_s;
    let hold_s = system.options.hold_s;
    let address = format!("127.0.0.1:{upstream}");
    let routes = system.options.routes.replace("{upstream}", &address);
    format!(
        r#"
[server]
issuer = "{issuer}"
listen = "127.0.0.1:{http}"
grpc_listen = "127.0.0.1:{grpc}"
data_dir = {data}
admin_socket = {admin_socket}

[identity]
workload_api = {workload_api}
built_in = true
trust_domain = "writ.example"
control_plane_id = "spiffe://writ.example/control-plane"
# One uid runs agent, proxy and approver here: one principal, as SECURITY.md says.
dev_single_uid = true

[[identity.workload]]
spiffe_id = "{PROXY}"
uid = {uid}
executable = {envoy}

[[identity.workload]]
spiffe_id = "{AGENT}"
uid = {uid}

[[proxy]]
spiffe_id = "{PROXY}"

[[agent]]
spiffe_id = "{AGENT}"
owner = "platform@example.com"

[[approver]]
name = "operator"
groups = ["platform"]

[token]
lifetime_s = {lifetime_s}

[edge]
listen = "127.0.0.1:{proxy}"
origin = "{origin}"
module = {module}
hold_s = {hold_s}

[[edge.route]]
name = "files"
path_prefix = "/"
upstream = "{address}"

{routes}

[policy]
files = ["policy.cedar"]
"#
    )
}

fn bootstrap(system: &System, index: usize) -> Result<String, Error> {
    let path = system.tools.root.join(BOOTSTRAP);
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    // A JSON string is a YAML string, whatever the path has in it.
    let workload_api = json!(system.workload_api()).to_string();
    let grpc = system.cut.as_ref().map_or(system.ports.grpc, Cut::port);
    let literals = [
        ("/run/writ/workload.sock", workload_api),
        ("port_value: 8481", format!("port_value: {grpc}")),
        (
            "port_value: 9901",
            format!("port_value: {}", system.envoys.admin_port(index)),
        ),
        // The identity decides; the node's id tells proxies of one identity apart.
        ("id: writ-proxy", format!("id: writ-proxy-{index}")),
    ];
    let mut out = String::new();
    for line in text.lines() {
        // Comments speak of the literals and stay as they are.
        if line.trim_start().starts_with('#') {
            continue;
        }
        let line = literals.iter().fold(line.to_owned(), |line, (from, to)| {
            line.replace(from, to.as_str())
        });
        out.push_str(&line);
        out.push('\n');
        if line == "static_resources:" && !system.options.listeners.is_empty() {
            out.push_str("  listeners:\n");
            out.push_str(&system.options.listeners);
        }
    }
    for (from, to) in literals {
        if !out.contains(&to) {
            return Err(Error::Setup(format!(
                "{} names no {from}: it must, since the harness replaces that",
                path.display()
            )));
        }
    }
    Ok(super::variants::in_bootstrap(&out, system))
}

fn parse(text: &str) -> Result<Table, Error> {
    text.parse()
        .map_err(|problem| Error::Setup(format!("bad extra config: {problem}")))
}

/// Lays `over` on `base`: tables key by key, anything else replaced.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::copy(from, to)
        .map(|_| ())
        .map_err(Error::file("copy", from))
}

fn put(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_config_is_laid_over_table_by_table() {
        let mut base =
            parse("[token]\nlifetime_s = 30\n[edge]\nhold_s = 5\nlisten = \"a\"").unwrap();
        merge(
            &mut base,
            parse("[edge]\nhold_s = 9\n[limits]\noutstanding_per_agent = 7").unwrap(),
        );
        let expected = "[token]\nlifetime_s = 30\n[edge]\nhold_s = 9\nlisten = \"a\"\n[limits]\noutstanding_per_agent = 7";
        assert_eq!(base, parse(expected).unwrap());
    }
}
