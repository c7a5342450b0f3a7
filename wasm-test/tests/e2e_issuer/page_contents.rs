//! What agents wrote, on the pages that people look at.

use wasm_test::client::Answer;

use crate::visitor::{Browser, system};

/// What an agent may put into a path or a query.
const NASTY: &[&str] = &[
    "%3Cscript%3Ewindow.pwned=1%3C/script%3E",
    "%3Cimg%20src=x%20onerror=pwned()%3E",
    "%22%3E%3Csvg%20onload=pwned()%3E",
    "%27%22%26lt;%26%23x3c;",
    "javascript:pwned()",
    "%7B%7B7*7%7D%7D",
    "Approved%20by%20the%20platform%20team",
    "%E2%80%AEgnp.exe",
    "%00%0d%0aset-cookie:a=b",
];

#[tokio::test]
async fn what_an_agent_wrote_is_inert_on_every_page() {
    let system = system().await;
    let agent = system.agent().await.unwrap();
    let browser = Browser::login(&system.serve_ready().approver_login).await;
    let mut shown = 0;
    for nasty in NASTY {
        for path in [
            format!("/files/restricted/{nasty}"),
            format!("/files/restricted/a?q={nasty}"),
        ] {
            let answer = agent.exchange("GET", &path).await.unwrap();
            if answer.status != 200 {
                // Some are no action at all, which is as good.
                assert_eq!(answer.status, 400, "{path}: {}", answer.text());
                continue;
            }
            let token = answer.json()["access_token"].as_str().unwrap().to_owned();
            let answer = agent.present("GET", &path, &token).await.unwrap();
            if answer.reason() != "approval_pending" {
                assert!(
                    (400..500).contains(&answer.status),
                    "{path}: {}",
                    answer.text()
                );
                continue;
            }
            let id = answer.json()["approval_id"].as_str().unwrap().to_owned();
            let pages = [
                format!("/approvals/{id}"),
                "/approvals".to_owned(),
                "/approvals/list".to_owned(),
                "/".to_owned(),
                "/audit".to_owned(),
            ];
            for page in pages {
                inert(&page, &path, &browser.get(&page).await);
            }
            shown += 1;
        }
    }
    assert!(shown >= 8, "only {shown} were held and shown");
    system.stop().await;
}

/// The tags of a page are the templates' alone.
fn inert(page: &str, path: &str, answer: &Answer) {
    assert_eq!(answer.status, 200, "{page}");
    let text = answer.text();
    let allowed = [
        "!doctype", "html", "head", "meta", "title", "link", "script", "body", "a", "p", "strong",
        "header", "div", "img", "span", "nav", "form", "input", "button", "main", "article", "h1",
        "h2", "section", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td",
        "ul", "ol", "li", "code", "time", "label",
    ];
    for tag in text.split('<').skip(1) {
        let name: String = tag
            .trim_start_matches('/')
            .chars()
            .take_while(|c| !" >\n\t/".contains(*c))
            .collect();
        assert!(
            allowed.contains(&name.as_str()),
            "{page} of {path}: <{name}"
        );
        let tag = tag.split('>').next().unwrap();
        assert!(
            !tag.contains(" on"),
            "{page} of {path}: a handler in <{tag}>"
        );
        if name == "script" && !tag.starts_with('/') {
            assert!(
                tag.contains("src=\"/assets/app."),
                "{page} of {path}: <{tag}>"
            );
        }
        if name == "img" {
            assert!(
                tag.contains("src=\"/assets/mark."),
                "{page} of {path}: <{tag}>"
            );
        }
        assert!(!tag.contains("javascript:"), "{page} of {path}: <{tag}>");
    }
    assert!(
        !text.contains('\u{202e}') && !text.contains('\0'),
        "{page} of {path}: a hidden character"
    );
}
