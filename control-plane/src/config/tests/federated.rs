//! Whose SVIDs count beside our own trust domain's.

use super::*;
use ::identity::federation::BundleFrom;

const FEDERATED: &str = r#"
[[identity.federated]]
trust_domain = "partner.example"
bundle = "https://partner.example/bundle"
"#;

fn with(federated: &str) -> Result<Config, Vec<ConfigError>> {
    parse(&GOOD.replace("[[proxy]]", &format!("{federated}\n[[proxy]]")))
}

#[test]
fn a_bundle_comes_from_a_url_a_file_or_the_workload_api() {
    let place = |bundle: &str| {
        let text = FEDERATED.replace("https://partner.example/bundle", bundle);
        let text = GOOD.replace("[[proxy]]", &format!("{text}\n[[proxy]]"));
        let text = text.replace("[identity]", "[identity]\nbuilt_in = false");
        parse(&text).unwrap().identity.federated[0].bundle.clone()
    };
    assert_eq!(place("workload_api"), BundleFrom::WorkloadApi);
    assert_eq!(place("/x.json"), BundleFrom::File("/x.json".into()));
    let url = "https://partner.example/x";
    assert_eq!(place(url), BundleFrom::Url(url.into()));
    assert!(parse(GOOD).unwrap().identity.federated.is_empty());
    let config = with(FEDERATED).unwrap();
    assert_eq!(config.identity.federated[0].lifetime_max_s, 86_400);
}

#[test]
fn what_is_wrong_with_one_is_said_with_its_line() {
    let bundle = "bundle = \"https://partner.example/bundle\"";
    let twice = format!("{FEDERATED}{FEDERATED}");
    let table = [
        (
            FEDERATED.replace("partner.example\"", "writ.example\""),
            "nobody else may speak for",
        ),
        (
            FEDERATED.replace("\"partner.example", "\"spiffe://partner.example"),
            "is no trust domain's name",
        ),
        (twice, "another one has this name"),
        (
            FEDERATED.replace("https:", "http:"),
            "is neither https:// nor an address of this machine",
        ),
        (
            FEDERATED.replace(bundle, "bundle = \"workload_api\""),
            "the built-in trust domain has no other's bundle",
        ),
        (
            FEDERATED.replace(bundle, "bundle = \"/x.json\"\nca_file = \"/y.pem\""),
            "nothing is fetched where `bundle` is no URL",
        ),
        (FEDERATED.replace(bundle, ""), "bundle"),
        (
            format!("{FEDERATED}lifetime_max_s = 59\n"),
            "lifetime_max_s",
        ),
        (
            format!("{FEDERATED}lifetime_max_s = 86401\n"),
            "lifetime_max_s",
        ),
    ];
    for (text, wanted) in table {
        let errors = with(&text).unwrap_err();
        let fits = |error: &ConfigError| error.message.contains(wanted) && error.line > 0;
        assert!(errors.iter().any(fits), "{wanted}: {errors:?}");
    }
    let many: String = (0..65)
        .map(|at| FEDERATED.replace("\"partner", &format!("\"p{at}")))
        .collect();
    let errors = with(&many).unwrap_err();
    assert!(errors[0].message.contains("more than 64"), "{errors:?}");
}
