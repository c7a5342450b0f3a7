use super::*;

fn load(text: &str) -> Result<Policies, Vec<LoadError>> {
    Policies::load(
        &[Source {
            name: "test.cedar".into(),
            text: text.into(),
        }],
        &[Approver {
            name: "operator".into(),
            groups: vec!["platform".into()],
        }],
    )
}

fn ask(method: &'static str, path: &'static str) -> Question<'static> {
    Question {
        agent: "spiffe://writ.example/agent/demo",
        user: None,
        chain: &[],
        method,
        message: None,
        location: path,
        origin: "http://127.0.0.1:8400",
        path,
        query: "",
        time_s: 1_800_000_000,
        body: None,
    }
}

const STARTER: &str = r#"
@id("read")
permit(principal == Writ::Agent::"spiffe://writ.example/agent/demo", action == Writ::Action::"GET", resource)
when { resource.path like "/files/*" };

@id("ask-first") @approvers("platform") @reason("restricted") @ttl("15m")
forbid(principal, action, resource)
when { resource.path like "/files/restricted/*" }
unless { context.approvals.contains("ask-first") };

@id("never")
forbid(principal, action, resource) when { resource.path like "/files/restricted/never/*" };
"#;

#[test]
fn decides_by_table() {
    let policies = load(STARTER).unwrap();
    let none = BTreeSet::new();
    let asked = BTreeSet::from(["ask-first".to_owned()]);
    let hold = || {
        Verdict::Hold(vec![Demand {
            rule: "ask-first".into(),
            approvers: vec!["platform".into()],
            reason: "restricted".into(),
            ttl_s: Some(900),
        }])
    };
    let allow = || Verdict::Allow(vec!["read".into()]);
    let table = [
        ("GET", "/files/a", &none, allow()),
        ("GET", "/elsewhere", &none, Verdict::Deny(vec![])),
        ("POST", "/files/a", &none, Verdict::Deny(vec![])),
        ("GET", "/files/restricted/a", &none, hold()),
        ("GET", "/files/restricted/a", &asked, allow()),
        // Nothing permits POST, so a human's yes would not help: no hold.
        (
            "POST",
            "/files/restricted/a",
            &none,
            Verdict::Deny(vec!["ask-first".into()]),
        ),
        (
            "GET",
            "/files/restricted/never/a",
            &none,
            Verdict::Deny(vec!["ask-first".into(), "never".into()]),
        ),
        (
            "GET",
            "/files/restricted/never/a",
            &asked,
            Verdict::Deny(vec!["never".into()]),
        ),
    ];
    for (method, path, approved, expected) in table {
        assert_eq!(
            policies.may_pass(&ask(method, path), approved),
            expected,
            "{method} {path} {approved:?}"
        );
    }
    // At the exchange the rule that wants a human is left aside; the other is not.
    assert_eq!(
        policies.may_issue(&ask("GET", "/files/restricted/a")),
        allow()
    );
    assert_eq!(
        policies.may_issue(&ask("GET", "/files/restricted/never/a")),
        Verdict::Deny(vec!["never".into()])
    );
    assert!(
        matches!(
            policies.may_issue(&ask("BREW", "/files/a")),
            Verdict::Error(_)
        ),
        "an unknown action denies"
    );
}

#[test]
fn a_forbid_that_errors_denies() {
    // `time_s + max` overflows: Cedar would skip the forbid and allow.
    let policies = load(
        r#"permit(principal, action, resource);
           forbid(principal, action, resource) when { context.time_s * 9223372036854775807 > 0 };"#,
    )
    .unwrap();
    assert!(matches!(
        policies.may_issue(&ask("GET", "/x")),
        Verdict::Error(_)
    ));
    assert!(matches!(
        policies.may_pass(&ask("GET", "/x"), &BTreeSet::new()),
        Verdict::Error(_)
    ));
}

#[test]
fn ids_from_agents_stay_ids() {
    let policies = load(STARTER).unwrap();
    let mut question = ask("GET", "/files/a");
    question.agent = "x\"}; permit(principal, action, resource); //";
    assert_eq!(policies.may_issue(&question), Verdict::Deny(vec![]));
}

#[test]
fn load_errors_name_file_line_and_remedy() {
    let table = [
        (
            "permit(principal, action, resource)\nwhen { nonsense",
            "test.cedar:2",
            "unexpected",
        ),
        (
            "permit(principal, action, resource) when { resource.colour == \"red\" };",
            "test.cedar",
            "colour",
        ),
        (
            "@id(\"a\") permit(principal, action, resource); @id(\"a\") forbid(principal, action, resource);",
            "test.cedar",
            "own @id",
        ),
        (
            "@approvers(\"nobody\") forbid(principal, action, resource);",
            "test.cedar",
            "no [[approver]]",
        ),
        (
            "@approvers(\"\") forbid(principal, action, resource);",
            "test.cedar",
            "names nobody",
        ),
        (
            "@approvers(\"platform\") @quorum(\"2\") forbid(principal, action, resource);",
            "test.cedar",
            "@quorum",
        ),
        (
            "@approvers(\"platform\") @ttl(\"25h\") forbid(principal, action, resource);",
            "test.cedar",
            "24h at most",
        ),
        (
            "@approvers(\"platform\") permit(principal, action, resource);",
            "test.cedar",
            "would be ignored",
        ),
        (
            "@ttl(\"5m\") forbid(principal, action, resource);",
            "test.cedar",
            "would be ignored",
        ),
        (
            "@aprovers(\"platform\") forbid(principal, action, resource);",
            "test.cedar",
            "means nothing",
        ),
        (
            "permit(principal == ?principal, action, resource);",
            "test.cedar",
            "templates",
        ),
    ];
    for (text, place, message) in table {
        let errors = load(text).expect_err(text);
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(
            shown
                .iter()
                .any(|line| line.starts_with(place) && line.contains(message)),
            "{text}: {shown:?}"
        );
    }
}

#[test]
fn a_rule_that_nobody_could_lift_is_refused() {
    let rule = |unless: &str| {
        format!(
            "@id(\"ask\") @approvers(\"platform\")\nforbid(principal, action, resource) {unless};"
        )
    };
    let never = [
        "",
        "unless { resource.path == \"/\" }",
        "unless { context.approvals.contains(\"asked\") }",
        "unless { context.approvals.containsAll([\"other\"]) }",
        "unless { context[\"approvals\"].contains(\"ASK\") }",
    ];
    for unless in never {
        let errors = load(&rule(unless)).expect_err(unless);
        assert_eq!(errors.len(), 1, "{unless}: {errors:?}");
        let said = errors[0].to_string();
        assert!(said.starts_with("test.cedar:1: rule `ask`"), "{said}");
        assert!(
            said.contains("context.approvals.contains(\"ask\")"),
            "{said}"
        );
    }
    let sometimes = [
        "unless { context.approvals.contains(\"ask\") }",
        "unless { context.approvals.contains(\"other\") && context.approvals.contains(\"ask\") }",
        "unless { [\"ask\"] == context.approvals }",
        "when { !context.approvals.contains(\"ask\") }",
        "unless { context.approvals.contains(context.path) }",
    ];
    for unless in sometimes {
        assert!(load(&rule(unless)).is_ok(), "{unless}");
    }
}

#[test]
fn every_problem_comes_at_once_in_the_order_of_the_lines() {
    let text = "
permit(principal, action, resource)
when { resource.colour == \"red\" };

@approvers(\"platform\")
permit(principal, action, resource);

@id(\"a\") @approvers(\"nobody\")
forbid(principal, action, resource)
unless { context.approvals.contains(\"a\") };

@id(\"a\")
permit(principal, action, resource)
when { context.nothing };

permit(principal, action == Writ::Action::\"BREW\", resource);
";
    let errors = load(text).unwrap_err();
    let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
    assert!(lines.is_sorted() && !lines.contains(&0), "{errors:?}");
    for (line, word) in [
        (3, "colour"),
        (5, "on a `permit`"),
        (8, "nobody"),
        (12, "own @id"),
        (16, "BREW"),
    ] {
        let hit = |error: &LoadError| error.line == line && error.message.contains(word);
        assert!(errors.iter().any(hit), "{line} {word}: {errors:?}");
    }
    // What is wrong in one file hides nothing in another.
    let sources = [
        "permit(",
        "permit(principal, action, resource) when { resource.x };",
    ]
    .map(str::to_owned)
    .into_iter()
    .zip(["one.cedar", "two.cedar"])
    .map(|(text, name)| Source {
        name: name.into(),
        text,
    })
    .collect::<Vec<_>>();
    let errors = Policies::load(&sources, &[]).unwrap_err();
    let files: Vec<&str> = errors.iter().map(|error| error.file.as_str()).collect();
    assert_eq!(files, ["one.cedar", "two.cedar"], "{errors:?}");
}

#[test]
fn what_policies_see_has_the_schema_s_shape() {
    let (schema, _) = cedar_policy::Schema::from_cedarschema_str(SCHEMA).unwrap();
    let approved = BTreeSet::from(["ask-first".to_owned()]);
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for user in [None, Some(("https://id.example", "maria"))] {
            for approved in [&BTreeSet::new(), &approved] {
                let mut question = ask(method, "/files/a");
                question.user = user;
                model::request(Some(&schema), "request", &question, approved).unwrap();
            }
        }
    }
    let strange = ask("BREW", "/files/a");
    assert!(model::request(Some(&schema), "request", &strange, &approved).is_err());
}

#[test]
fn facts_of_bodies_are_typed_and_known() {
    let facts = BTreeMap::from([
        ("/amount".to_owned(), FactKind::Integer),
        ("/to/name".to_owned(), FactKind::Text),
        ("/dry".to_owned(), FactKind::Flag),
    ]);
    let text = r#"
@id("small")
permit(principal, action == Writ::Action::"POST", resource)
when { context has body && context.body has "/amount" && context.body["/amount"] <= 100 };
@id("dry")
permit(principal, action == Writ::Action::"POST", resource)
when { context has body && context.body has "/dry" && context.body["/dry"] };
@id("not-bob")
forbid(principal, action, resource)
when { context has body && context.body has "/to/name" && context.body["/to/name"] == "bob" };
@id("not-this")
forbid(principal, action, resource)
when { context has body && (context.body.sha256 == "bad" || context.body.bytes > 50) };
"#;
    let source = |text: &str| {
        [Source {
            name: "body.cedar".into(),
            text: text.into(),
        }]
    };
    let policies = Policies::load_with(&source(text), &[], &facts).unwrap();
    let none = BTreeSet::new();
    let amount = |value| ("/amount".to_owned(), Fact::Integer(value));
    let to = |name: &str| ("/to/name".to_owned(), Fact::Text(name.to_owned()));
    let dry = |value| ("/dry".to_owned(), Fact::Flag(value));
    let allow = |id: &str| Verdict::Allow(vec![id.to_owned()]);
    let deny = |ids: &[&str]| Verdict::Deny(ids.iter().map(|&id| id.to_owned()).collect());
    for (sha256, bytes, facts, wanted) in [
        (
            "a",
            5,
            vec![amount(100), to("eve"), dry(false)],
            allow("small"),
        ),
        (
            "a",
            5,
            vec![amount(101), to("eve"), dry(true)],
            allow("dry"),
        ),
        ("a", 5, vec![amount(101), to("eve"), dry(false)], deny(&[])),
        ("a", 5, vec![amount(-1), to("bob")], deny(&["not-bob"])),
        ("bad", 5, vec![amount(1)], deny(&["not-this"])),
        ("a", 51, vec![amount(1)], deny(&["not-this"])),
        ("a", 0, vec![], deny(&[])),
    ] {
        let question = Question {
            body: Some(Body {
                sha256,
                bytes,
                facts: &facts,
            }),
            ..ask("POST", "/pay")
        };
        assert_eq!(policies.may_pass(&question, &none), wanted, "{facts:?}");
        // What is built without the schema has the schema's shape.
        let (schema, _) = cedar_policy::Schema::from_cedarschema_str(&schema(&BTreeMap::from([
            ("/amount".to_owned(), FactKind::Integer),
            ("/to/name".to_owned(), FactKind::Text),
            ("/dry".to_owned(), FactKind::Flag),
        ])))
        .unwrap();
        model::request(Some(&schema), "request", &question, &none).unwrap();
    }
    assert_eq!(
        policies.may_pass(&ask("POST", "/pay"), &none),
        deny(&[]),
        "no body, no fact"
    );

    // Not known, of another type, or used as if it were always there.
    for wrong in [
        r#"context.body has "/amount" && context.body["/amount"] == "1""#,
        r#"context.body has "/sum" && context.body["/sum"] == 1"#,
        r#"context.body["/amount"] == 1"#,
    ] {
        let text = format!(
            "@id(\"x\")\npermit(principal, action, resource)\nwhen {{ context has body && {wrong} }};"
        );
        let errors = Policies::load_with(&source(&text), &[], &facts).unwrap_err();
        let unknown = errors[0].message.contains("names `/sum`");
        assert_eq!(unknown, wrong.contains("/sum"), "{errors:?}");
    }
    let always =
        "@id(\"x\")\npermit(principal, action, resource)\nwhen { context.body.bytes == 1 };";
    assert!(Policies::load_with(&source(always), &[], &facts).is_err());
    assert!(
        Policies::load(&source(text), &[]).is_err(),
        "no route has these facts"
    );
}

#[test]
fn what_agents_are_told_is_said_by_the_rule() {
    let policies = load(
        r#"
@id("told") @tell("agent") @reason("Not on Sundays.")
forbid (principal, action, resource) when { resource.path == "/a" };
@id("kept") @reason("For people.")
forbid (principal, action, resource) when { resource.path == "/a" };
@id("permits") permit (principal, action, resource);
"#,
    )
    .unwrap();
    let Verdict::Deny(ids) = policies.may_issue(&ask("GET", "/a")) else {
        panic!("it is forbidden");
    };
    assert_eq!(ids, ["kept", "told"]);
    assert_eq!(policies.told(&ids), ["Not on Sundays."]);
    assert_eq!(policies.told(&["no such rule".to_owned()]), [""; 0]);

    let long = format!(
        r#"@id("x") @reason("{}") forbid (principal, action, resource);"#,
        "r".repeat(513)
    );
    for (text, problem) in [
        (
            r#"@id("x") @tell("agent") forbid (principal, action, resource);"#,
            "would be ignored",
        ),
        (
            r#"@id("x") @tell("agent") @reason("r") permit (principal, action, resource);"#,
            "would be ignored",
        ),
        (
            r#"@id("x") @tell("all") @reason("r") forbid (principal, action, resource);"#,
            "says `agent`",
        ),
        (&long, "longer than 512 bytes"),
    ] {
        let errors = load(text).unwrap_err();
        assert!(
            errors.iter().any(|it| it.message.contains(problem)),
            "{text}: {errors:?}"
        );
    }
}

#[test]
fn a_rule_sees_the_message_that_a_post_is() {
    let policies = load(
        r#"
@id("post")
permit(principal, action == Writ::Action::"POST", resource);
@id("no-drop")
forbid(principal, action, resource)
when { context has mcp && context.mcp has name && context.mcp.name == "drop" };
@id("bound")
forbid(principal, action, resource)
when { context has mcp && context.mcp.method == "prompts/get" }
unless { context.mcp has arguments_digest };
@id("skill")
forbid(principal, action, resource)
when { context has a2a && context.a2a has skill && context.a2a.skill != "translate" };
"#,
    )
    .unwrap();
    let message = |protocol, method, name, arguments_digest| Message {
        protocol,
        method,
        name,
        arguments_digest,
    };
    let allow = || Verdict::Allow(vec!["post".into()]);
    let deny = |id: &str| Verdict::Deny(vec![id.into()]);
    let (mcp, a2a) = (Protocol::Mcp, Protocol::A2a);
    let schema = cedar_policy::Schema::from_cedarschema_str(SCHEMA)
        .unwrap()
        .0;
    for (message, expected) in [
        (message(mcp, "tools/call", Some("add"), None), allow()),
        (
            message(mcp, "tools/call", Some("drop"), None),
            deny("no-drop"),
        ),
        (message(mcp, "tools/list", None, None), allow()),
        (message(mcp, "prompts/get", Some("p"), None), deny("bound")),
        (message(mcp, "prompts/get", Some("p"), Some("d")), allow()),
        (message(a2a, "SendMessage", None, None), allow()),
        (
            message(a2a, "SendMessage", Some("translate"), None),
            allow(),
        ),
        (
            message(a2a, "SendMessage", Some("drop"), None),
            deny("skill"),
        ),
    ] {
        let question = Question {
            message: Some(message),
            ..ask("POST", "/mcp")
        };
        assert_eq!(policies.may_issue(&question), expected, "{message:?}");
        assert_eq!(
            policies.may_pass(&question, &BTreeSet::new()),
            expected,
            "{message:?}"
        );
        // What is built without the schema has the schema's shape.
        model::request(Some(&schema), "request", &question, &BTreeSet::new()).unwrap();
    }
    // What may be missing is asked for.
    for missing in [
        r#"context.mcp.method == "x""#,
        r#"context has mcp && context.mcp.name == "x""#,
        r#"context has mcp && context.mcp has skill && context.mcp.skill == "x""#,
        r#"context has a2a && context.a2a.skill == "x""#,
    ] {
        let text =
            format!("@id(\"x\")\npermit(principal, action, resource)\nwhen {{ {missing} }};");
        let misspelt = missing.contains("mcp has skill");
        assert_eq!(load(&text).is_ok(), misspelt, "{missing}");
    }
}

#[test]
fn of_two_verdicts_the_stricter_counts() {
    let ids = |all: &[&str]| all.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let allow = |all: &[&str]| Verdict::Allow(ids(all));
    let deny = |all: &[&str]| Verdict::Deny(ids(all));
    let error = |all: &[&str]| Verdict::Error(ids(all));
    let hold = |all: &[&str]| {
        let demand = |rule: &&str| Demand {
            rule: (*rule).to_owned(),
            approvers: vec!["platform".into()],
            reason: String::new(),
            ttl_s: None,
        };
        Verdict::Hold(all.iter().map(demand).collect())
    };
    let table = [
        (allow(&["a"]), allow(&["b", "a"]), allow(&["a", "b"])),
        (allow(&["a"]), hold(&["h"]), hold(&["h"])),
        (hold(&["h", "i"]), hold(&["i", "j"]), hold(&["h", "i", "j"])),
        (hold(&["h"]), deny(&[]), deny(&[])),
        (allow(&["a"]), deny(&["d"]), deny(&["d"])),
        (deny(&["d"]), deny(&["e"]), deny(&["d", "e"])),
        (deny(&["d"]), error(&["x"]), error(&["x"])),
        (error(&["x"]), error(&["y"]), error(&["x", "y"])),
        (hold(&["h"]), error(&["x"]), error(&["x"])),
    ];
    for (one, two, wanted) in table {
        assert_eq!(one.clone().and(two.clone()), wanted, "{one:?} {two:?}");
        // The order is that of the agents; which is stricter does not depend on it.
        let turned = two.clone().and(one.clone());
        let same = std::mem::discriminant(&turned) == std::mem::discriminant(&wanted);
        assert!(same, "{two:?} {one:?}");
    }
}
