//! `[[identity.federated]]`: other trust domains, whose SVIDs count as evidence.

use super::reader::{Reader, Table};
use super::types::Config;
use identity::federation::{BundleFrom, check_bundle};
use identity::oidc::may_have_keys;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Trust domains that are believed beside our own.
const FEDERATED_MAX: usize = 64;
/// What `bundle` is where the Workload API sends it.
const FROM_WORKLOAD_API: &str = "workload_api";

/// Another trust domain that is believed of its own workloads.
#[derive(Clone, Debug)]
pub struct Federated {
    /// Its bare name.
    pub trust_domain: String,
    /// Where its bundle comes from.
    pub bundle: BundleFrom,
    /// PEM of the authorities of its endpoint's TLS certificate.
    pub authorities: Option<PathBuf>,
    /// How long its SVIDs may still last when they are shown, in seconds.
    pub lifetime_max_s: u64,
    /// The line of the config that names it.
    pub line: usize,
}

/// Reads them.
pub(super) fn read(identity: &Table<'_>) -> Vec<Federated> {
    let entries = identity.tables("federated");
    let all: Vec<Federated> = entries.iter().map(one).collect();
    if all.len() > FEDERATED_MAX {
        identity.error(
            "federated",
            format!("more than {FEDERATED_MAX} trust domains"),
        );
    }
    all
}

fn one(table: &Table<'_>) -> Federated {
    let trust_domain = table.text("trust_domain");
    let usable = identity::SpiffeId::parse(&format!("spiffe://{trust_domain}/x")).is_ok();
    if !trust_domain.is_empty() && !usable {
        let message =
            format!("`{trust_domain}` is no trust domain's name, such as partner.example");
        table.error("trust_domain", message);
    }
    let bundle = match table.text("bundle") {
        text if text == FROM_WORKLOAD_API => BundleFrom::WorkloadApi,
        path if path.starts_with('/') => BundleFrom::File(path.into()),
        url => {
            if !url.is_empty() && !may_have_keys(&url) {
                let message = format!(
                    "`{url}` is neither https:// nor an address of this machine, nor a file's path, nor \"{FROM_WORKLOAD_API}\""
                );
                table.error("bundle", message);
            }
            BundleFrom::Url(url)
        }
    };
    if table.has("ca_file") && !matches!(bundle, BundleFrom::Url(_)) {
        let message = "nothing is fetched where `bundle` is no URL".to_owned();
        table.error("ca_file", message);
    }
    let federated = Federated {
        authorities: table.optional_path("ca_file"),
        lifetime_max_s: table.number("lifetime_max_s", 86_400, 60, 86_400),
        line: table.line_of("trust_domain"),
        trust_domain,
        bundle,
    };
    table.finish();
    federated
}

impl Config {
    /// What can be said of them only beside the rest.
    pub(super) fn check_federated(&self, reader: &Reader) {
        let mut names = BTreeSet::new();
        for federated in &self.identity.federated {
            let name = &federated.trust_domain;
            let error = |key: &str, what: &str| {
                reader.error(federated.line, format!("identity.federated.{key}: {what}"));
            };
            if *name == self.identity.trust_domain {
                error(
                    "trust_domain",
                    "this is identity.trust_domain, which nobody else may speak for",
                );
            }
            if !names.insert(name) {
                error("trust_domain", "another one has this name");
            }
            if self.identity.built_in && federated.bundle == BundleFrom::WorkloadApi {
                error(
                    "bundle",
                    "the built-in trust domain has no other's bundle: say a URL or a file",
                );
            }
        }
    }

    /// Files that they name, on this machine.
    pub(super) fn check_federated_files(&self, reader: &Reader) {
        for federated in &self.identity.federated {
            let bundle = match &federated.bundle {
                BundleFrom::File(path) => Some(path),
                _ => None,
            };
            let files = [
                ("bundle", bundle),
                ("ca_file", federated.authorities.as_ref()),
            ];
            reader.check_files(
                federated.line,
                "identity.federated",
                &files,
                |key, bytes| {
                    let wrong = check_bundle(&federated.trust_domain, bytes).err();
                    let wrong = wrong.filter(|_| key == "bundle")?;
                    Some(format!("is no SPIFFE bundle: {wrong}"))
                },
            );
        }
    }
}
