//! Listeners that somebody else wrote: each setting of how Envoy normalises
//! paths, with the guard from the control plane in front of the same upstream,
//! and with clients that Envoy holds to be internal.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::System;
use crate::{Error, ports};

/// Their cluster, in the bootstrap.
const CLUSTER: &str = "variants_upstream";
const ESCAPED: [&str; 4] = [
    "KEEP_UNCHANGED",
    "REJECT_REQUEST",
    "UNESCAPE_AND_REDIRECT",
    "UNESCAPE_AND_FORWARD",
];

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    /// `normalize_path`.
    pub normalize: bool,
    /// `merge_slashes`.
    pub merge: bool,
    /// `path_with_escaped_slashes_action`.
    pub escaped: &'static str,
    /// Whether its guard comes from the file of [`System::guard_file`] and not
    /// from the control plane.
    pub from_file: bool,
    /// Whether its route turns the guard off, as somebody could by mistake.
    pub disabled: bool,
}

impl Variant {
    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its settings in a few words.
    pub fn words(&self) -> String {
        format!(
            "normalize_path {}, merge_slashes {}, escaped slashes {}",
            self.normalize, self.merge, self.escaped
        )
    }
}

/// Each combination of the settings, on a port of its own.
///
/// # Errors
/// When no ports are left.
pub fn all() -> Result<Vec<Variant>, Error> {
    let mut variants: Vec<Variant> = Vec::new();
    for normalize in [true, false] {
        for merge in [true, false] {
            for escaped in ESCAPED {
                let mut port = ports::one()?;
                while variants.iter().any(|other| other.port == port) {
                    port = ports::one()?;
                }
                variants.push(Variant {
                    port,
                    normalize,
                    merge,
                    escaped,
                    from_file: false,
                    disabled: false,
                });
            }
        }
    }
    Ok(variants)
}

/// One with Writ's own settings; its guard may be what a test writes, and its route
/// may turn it off.
///
/// # Errors
/// When no port is left.
pub fn one(from_file: bool, disabled: bool) -> Result<Variant, Error> {
    Ok(Variant {
        port: ports::one()?,
        normalize: true,
        merge: true,
        escaped: "REJECT_REQUEST",
        from_file,
        disabled,
    })
}

impl System {
    /// Where a guard is read from by a listener that has it from a file.
    pub fn guard_file(&self) -> PathBuf {
        self.dir.path().join("guard.json")
    }

    /// Puts a guard in its file, whole: Envoy reads it again by itself.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_guard(&self, version: &str, guard: &Value) -> Result<(), Error> {
        let file = self.guard_file();
        let beside = file.with_extension("new");
        let all = json!({"version_info": version, "resources": [guard]});
        std::fs::write(&beside, all.to_string())
            .and_then(|()| std::fs::rename(&beside, &file))
            .map_err(Error::file("write", &file))
    }

    /// The guard that the first Envoy has from the control plane, as it would
    /// stand in the file.
    ///
    /// # Errors
    /// When Envoy has none.
    pub async fn guard_in_force(&self) -> Result<Value, Error> {
        let url = format!("{}/config_dump?resource=ecds_filters", self.admin_url());
        let dump = reqwest::get(&url).await.map_err(Error::http(&url))?;
        let dump: Value = dump.json().await.map_err(Error::http(&url))?;
        let of = |config: &Value| {
            let filter = config.pointer("/ecds_filter")?;
            let kind = filter.pointer("/typed_config/@type")?.as_str()?;
            let ours = filter.pointer("/name")? == "writ.filter";
            (ours && kind.ends_with(".Wasm")).then(|| filter.clone())
        };
        let configs = dump.pointer("/configs").and_then(Value::as_array);
        let mut guards = configs.into_iter().flatten().filter_map(of);
        guards
            .next()
            .ok_or_else(|| Error::Unexpected(format!("no filter by ECDS: {dump}")))
    }
}

/// A guard for the file that refuses everything, until there is another.
pub fn refusing() -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "name": "writ.filter",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": {}},
        },
    })
}

/// What stands in the bootstrap under `static_resources`: JSON, which is YAML.
pub fn in_bootstrap(text: &str, system: &System) -> String {
    if system.variants.is_empty() {
        return text.to_owned();
    }
    let listeners: Vec<Value> = system
        .variants
        .iter()
        .map(|variant| listener(variant, &system.guard_file()))
        .collect();
    let endpoint = json!({"endpoint": {"address": {"socket_address": {
        "address": "127.0.0.1", "port_value": system.ports.upstream,
    }}}});
    let cluster = json!({
        "name": CLUSTER, "type": "STATIC", "connect_timeout": "2s",
        // HTTP/2 would pass them on as well.
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http_protocol_options": {"enable_trailers": true}},
        }},
        "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    text.replace(
        "static_resources:\n  clusters:\n",
        &format!(
            "static_resources:\n  listeners: {}\n  clusters:\n    - {cluster}\n",
            Value::from(listeners)
        ),
    )
}

fn listener(variant: &Variant, guard_file: &Path) -> Value {
    const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions.filters";
    let mut per_filter = json!({});
    if variant.disabled {
        per_filter = json!({"writ.filter": {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true,
        }});
    }
    let route = json!({
        "match": {"prefix": ""},
        "route": {"cluster": CLUSTER, "timeout": "0s"},
        "typed_per_filter_config": per_filter,
    });
    let mut source = if variant.from_file {
        json!({"path_config_source": {"path": guard_file}})
    } else {
        json!({"ads": {}})
    };
    if let Some(source) = source.as_object_mut() {
        source.insert("resource_api_version".to_owned(), "V3".into());
        source.insert("initial_fetch_timeout".to_owned(), "0s".into());
    }
    let guard = json!({
        "name": "writ.filter",
        "config_discovery": {
            "config_source": source,
            "type_urls": [
                format!("{EXTENSIONS}.http.wasm.v3.Wasm"),
                format!("{EXTENSIONS}.http.rbac.v3.RBAC"),
            ],
        },
    });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": format!("{EXTENSIONS}.http.router.v3.Router")},
    });
    let manager = json!({
        "@type": format!("{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "variant",
        "normalize_path": variant.normalize,
        "merge_slashes": variant.merge,
        "path_with_escaped_slashes_action": variant.escaped,
        // Every client here is one that Envoy trusts.
        "use_remote_address": true,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [guard, router],
    });
    json!({
        "name": format!("variant-{}", variant.port),
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": variant.port}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager,
        }]}],
    })
}
