//! One approval in a terminal: what the page shows of it, in words.

use super::plain;
use serde_json::Value;

/// Method, on what it acts where that has a name, and location.
fn action(approval: &Value) -> String {
    let members = ["method", "name", "skill", "location"]
        .iter()
        .filter_map(|name| {
            let text = approval.get("action")?.get(name)?.as_str()?;
            Some(plain(text))
        });
    members.collect::<Vec<_>>().join(" ")
}

/// All lines of it.
pub(super) fn lines(approval: &Value) -> String {
    let text = |pointer: &str| {
        let text = approval.pointer(pointer).and_then(Value::as_str);
        text.map(plain).unwrap_or_default()
    };
    let texts = |pointer: &str| -> Vec<String> {
        let all = approval.pointer(pointer).and_then(Value::as_array);
        let all = all.into_iter().flatten().filter_map(Value::as_str);
        all.map(plain).collect()
    };
    let mut lines = vec![
        format!("{}  {}", text("/status"), text("/id")),
        format!("    {}", action(approval)),
        format!("    agent {}", text("/agent")),
    ];
    let mut more = |name: &str, said: String| {
        if !said.is_empty() {
            lines.push(format!("    {name} {said}"));
        }
    };
    if approval.pointer("/user/subject").is_some() {
        let user = format!("{} of {}", text("/user/subject"), text("/user/issuer"));
        more("for user", user);
    }
    // The last of the chain is the agent itself.
    let chain = texts("/chain");
    if chain.len() > 1 {
        more("chain", chain.join(" > "));
    }
    for reason in texts("/reasons") {
        more("reason", reason);
    }
    more("rule", texts("/rules").join(", "));
    more("approvers", texts("/approvers").join(", "));
    if let Some(bytes) = approval.pointer("/body/bytes").and_then(Value::as_u64) {
        let kind = text("/body/content_type");
        more(
            "body",
            format!("{bytes} bytes {kind}").trim_end().to_owned(),
        );
    }
    match text("/status").as_str() {
        "pending" => more("until", text("/expires_at")),
        _ => more("decided by", text("/decided_by")),
    }
    more("digest", text("/digest"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_approval_is_told_as_its_page_shows_it() {
        let mut approval = json!({
            "status": "pending", "id": "apr_1", "digest": "c9d4",
            "action": { "method": "POST", "location": "https://x/pay" },
            "agent": "spiffe://x/b", "user": { "issuer": "https://i", "subject": "ann\u{1b}[2J" },
            "chain": ["spiffe://x/a", "spiffe://x/b"],
            "rules": ["pays"], "reasons": ["Payments are looked at."],
            "approvers": ["platform", "ann"],
            "body": { "bytes": 7, "content_type": "text/plain" },
            "expires_at": "2026-01-01T00:00:00Z", "decided_by": null,
        });
        let said = lines(&approval);
        let wanted = "pending  apr_1
    POST https://x/pay
    agent spiffe://x/b
    for user ann";
        assert!(
            said.starts_with(wanted) && !said.contains('\u{1b}'),
            "{said}"
        );
        let rest = "of https://i
    chain spiffe://x/a > spiffe://x/b
    reason Payments are looked at.
    rule pays
    approvers platform, ann
    body 7 bytes text/plain
    until 2026-01-01T00:00:00Z
    digest c9d4";
        assert!(said.ends_with(rest), "{said}");
        // What is not there is no line.
        for gone in ["user", "body"] {
            approval[gone] = Value::Null;
        }
        approval["status"] = "approved".into();
        approval["decided_by"] = "ann".into();
        approval["chain"] = json!(["spiffe://x/b"]);
        let said = lines(&approval);
        let gone = ["user", "body", "until", "chain"];
        assert!(gone.iter().all(|it| !said.contains(it)), "{said}");
        assert!(said.contains("    decided by ann"), "{said}");
    }
}
