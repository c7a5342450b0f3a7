//! What this process does to itself at the start, before it holds any key.

use crate::config::Config;
use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};

/// Files that we would like to be allowed; the system's ceiling may be lower.
const FILES: u64 = 65_536;

/// Takes core dumps away, which would hold keys, and raises the number of open
/// files as far as the system lets us. What fails is logged: neither is worth
/// not starting. A kernel that pipes dumps to a program leaves the first to
/// that program; systemd's heeds the limit.
pub fn limit_resources() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps could not be turned off; one would hold keys");
    }
    let files = getrlimit(Resource::Nofile);
    let wanted = wanted_files(&files);
    if wanted != files
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::warn!(%error, "the number of open files could not be raised");
    }
}

/// The soft limit up to [`FILES`], as far as the hard one goes; never lowered.
fn wanted_files(files: &Rlimit) -> Rlimit {
    let raised = files.maximum.map_or(FILES, |maximum| maximum.min(FILES));
    Rlimit {
        current: files.current.map(|current| current.max(raised)),
        maximum: files.maximum,
    }
}

/// The workloads that have this process's own uid. Such a workload can read our
/// keys and our memory, so that all that we decide is worth nothing against it.
/// Judged when we serve: a config may be checked as anybody.
pub fn workloads_of_own_uid(config: &Config) -> Vec<String> {
    workloads_of(config, getuid().as_raw())
}

fn workloads_of(config: &Config, uid: u32) -> Vec<String> {
    let identity = &config.identity;
    if identity.dev_single_uid || !identity.built_in {
        return Vec::new();
    }
    let own = identity
        .workloads
        .iter()
        .filter(|workload| workload.uid == Some(uid));
    own.map(|workload| workload.spiffe_id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
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
spiffe_id = "spiffe://writ.example/agent/a"
uid = 1000
[[identity.workload]]
spiffe_id = "spiffe://writ.example/agent/b"
uid = 1001
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

    fn parse(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("policy.cedar"),
            "permit(principal, action, resource);",
        )
        .unwrap();
        Config::parse(&dir.path().join("writ.toml"), text).unwrap()
    }

    #[test]
    fn a_workload_of_our_own_uid_is_found() {
        let config = parse(CONFIG);
        assert_eq!(
            workloads_of(&config, 1001),
            ["spiffe://writ.example/agent/b"]
        );
        assert!(workloads_of(&config, 0).is_empty());
        for excuse in ["dev_single_uid = true", "built_in = false"] {
            let config = parse(&CONFIG.replace("[identity]\n", &format!("[identity]\n{excuse}\n")));
            assert!(workloads_of(&config, 1001).is_empty(), "{excuse}");
        }
    }

    #[test]
    fn core_dumps_are_off_and_files_are_not_fewer() {
        let before = getrlimit(Resource::Nofile).current;
        limit_resources();
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
        let after = getrlimit(Resource::Nofile).current;
        assert!(after.is_none() || after >= before);
    }

    #[test]
    fn open_files_are_raised_as_far_as_they_may_be() {
        let raised = |current, maximum| wanted_files(&Rlimit { current, maximum }).current;
        assert_eq!(raised(Some(1024), Some(1 << 20)), Some(FILES));
        assert_eq!(raised(Some(1024), None), Some(FILES));
        assert_eq!(raised(Some(1024), Some(4096)), Some(4096));
        assert_eq!(raised(Some(1 << 19), Some(1 << 20)), Some(1 << 19));
        assert_eq!(raised(None, None), None);
    }
}
