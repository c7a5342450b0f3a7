//! E02: nothing is minted that is wider than policy, or than what it comes from.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::claims_of;
use super::setting::{Ask, CHILD, Desk, OTHER};
use crate::Error;
use crate::attack::check::{holds, same};
use crate::attack::stages::Stages;
use crate::stage::text_at;
use crate::system::AGENT;
use crate::upstream::REPORT;

const METHODS: [&str; 3] = ["GET", "PUT", "POST"];
/// Every path that is told apart: each pattern has one of its own.
const PATHS: [&str; 10] = [
    "/files/a",
    "/files/b",
    "/files/zz",
    "/files/sub/x",
    "/files/sub/zz",
    "/files/sub/deep/zz",
    "/files/kept/zz",
    "/filesystem",
    "/echo/zz",
    "/zz",
];
const LOCATIONS: [&str; 9] = [
    "/files/a",
    "/files/b",
    "/files/sub/x",
    "/files/*",
    "/files/sub/*",
    "/files/sub/deep/*",
    "/files/kept/*",
    "/echo/*",
    "/*",
];
const PARENTS: usize = 20;
const CHILDREN: usize = 8;
const TOKENS: usize = 3;

const DETAILS: (u16, &str, &str) = (400, "invalid_authorization_details", "action_mismatch");
const DENIED: (u16, &str, &str) = (400, "access_denied", "policy_denied");
const USED_UP: (u16, &str, &str) = (400, "invalid_request", "limit_exceeded");

/// Numbers that a seed gives again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let most = u64::try_from(most.max(1)).unwrap_or(1);
        usize::try_from(self.0 % most).unwrap_or(0)
    }

    fn one(&mut self, of: &[&'static str]) -> &'static str {
        of.get(self.below(of.len())).copied().unwrap_or_default()
    }

    /// At least one, and mostly few.
    fn some(&mut self, of: &[&'static str], most: usize) -> BTreeSet<&'static str> {
        let count = 1 + self.below(most);
        (0..count).map(|_| self.one(of)).collect()
    }
}

/// What a delegation says.
#[derive(Default)]
struct Said {
    methods: BTreeSet<&'static str>,
    locations: BTreeSet<&'static str>,
    depth: usize,
    uses: usize,
    lifetime_s: usize,
}

impl Said {
    fn thrown(dice: &mut Dice) -> Said {
        Said {
            methods: dice.some(&METHODS, 2),
            locations: dice.some(&LOCATIONS, 4),
            depth: dice.below(3),
            uses: 1 + dice.below(4),
            lifetime_s: 100 + 90 * dice.below(3),
        }
    }

    /// One that is within another, but for what a throw changes, every other time.
    fn near(parent: &Said, dice: &mut Dice) -> Said {
        let methods: Vec<&'static str> = parent.methods.iter().copied().collect();
        let covered = parent.covers();
        let within = |one: &&'static str| {
            let one = Said {
                methods: parent.methods.clone(),
                locations: BTreeSet::from([*one]),
                ..Said::default()
            };
            one.covers().is_subset(&covered)
        };
        let locations: Vec<&'static str> = LOCATIONS.into_iter().filter(within).collect();
        let said = Said {
            methods: dice.some(&methods, 2),
            locations: dice.some(&locations, 3),
            depth: dice.below(parent.depth),
            uses: 1 + dice.below(parent.uses.min(3)),
            lifetime_s: 100,
        };
        let any = Said::thrown(dice);
        match dice.below(10) {
            0 => Said {
                methods: any.methods,
                ..said
            },
            1 => Said {
                locations: any.locations,
                ..said
            },
            2 => Said {
                depth: any.depth,
                ..said
            },
            3 => Said {
                uses: any.uses + 6,
                ..said
            },
            4 => Said {
                lifetime_s: any.lifetime_s,
                ..said
            },
            _ => said,
        }
    }

    /// Everything that it covers, by what its words mean and not by the code that is tried.
    fn covers(&self) -> BTreeSet<(&'static str, &'static str)> {
        let at = |path: &&str| {
            self.locations
                .iter()
                .any(|one| match one.strip_suffix('*') {
                    Some(base) => path.starts_with(base),
                    None => one == path,
                })
        };
        let paths: Vec<&str> = PATHS.into_iter().filter(at).collect();
        let of = |method: &&'static str| {
            let method = *method;
            paths.iter().map(move |path| (method, *path))
        };
        self.methods.iter().flat_map(of).collect()
    }

    fn element(&self, desk: &Desk<'_>, delegate: &str) -> Value {
        let locations = self.locations.iter().map(|it| desk.url(it));
        json!({
            "type": "delegation", "delegate": delegate, "actions": self.methods,
            "locations": locations.collect::<BTreeSet<_>>(), "depth": self.depth,
            "uses": self.uses, "lifetime_s": self.lifetime_s,
        })
    }
}

#[derive(Default)]
struct Tally {
    made: usize,
    wider: usize,
    tokens: usize,
    uncovered: usize,
    denied: usize,
    used_up: usize,
}

/// The row.
pub async fn wider(stages: &mut Stages) -> Result<String, Error> {
    let minting = stages.minting().await?;
    let desk = minting.desk()?;
    plainly(&desk).await?;
    let seed = rand::random::<u64>() | 1;
    let mut dice = Dice(seed);
    let mut tally = Tally::default();
    let tried = tables(&desk, &mut dice, &mut tally).await;
    tried.map_err(|problem| Error::Unexpected(format!("seed {seed}: {problem}")))?;
    holds(
        tally.made > PARENTS / 2 && tally.wider > PARENTS && tally.tokens > 0 && tally.denied > 0,
        format!("seed {seed} tries too little"),
    )?;
    desk.stage.good_request().await?;
    let Tally {
        made,
        wider,
        tokens,
        uncovered,
        denied,
        used_up,
    } = tally;
    Ok(format!(
        "{PARENTS} random delegations, passed on {} times: {made} were within, and as they were asked for; {wider} were wider and refused. By them {tokens} tokens, each for its action; {uncovered} were not covered, {denied} policy's no, {used_up} after the last use",
        made + wider
    ))
}

/// Without a delegation: what policy does not allow, scopes, and two actions for one.
async fn plainly(desk: &Desk<'_>) -> Result<(), Error> {
    for (method, path) in [
        ("POST", "/files/a"),
        ("GET", "/files/kept/zz"),
        ("GET", "/zz"),
    ] {
        let ask = desk
            .good(AGENT)
            .with("authorization_details", &desk.details(method, path));
        desk.refused(&format!("{method} {path}"), &ask, DENIED)
            .await?;
    }
    let scope = (400, "invalid_scope", "malformed_credentials");
    for asked in ["read", "openid", "*", "read write"] {
        let ask = desk.good(AGENT).also("scope", asked);
        desk.refused("a scope", &ask, scope).await?;
    }
    let url = desk.url(REPORT);
    let one = |actions: Value, locations: Value| json!([{"type": "http_request", "actions": actions, "locations": locations}]);
    let good = one(json!(["GET"]), json!([url])).to_string();
    let first: Value = serde_json::from_str(&good).unwrap_or_default();
    let first = first.get(0).cloned().unwrap_or_default();
    for details in [
        one(json!(["GET", "PUT"]), json!([url])),
        one(json!(["*"]), json!([url])),
        one(json!(["GET"]), json!([url, desk.url("/files/a")])),
        one(json!(["GET"]), json!([desk.url("/files/*")])),
        one(json!(["GET"]), json!([desk.url("/files/{x}")])),
        json!([first, first]),
    ] {
        let ask = desk
            .good(AGENT)
            .with("authorization_details", &details.to_string());
        desk.refused(&details.to_string(), &ask, DETAILS).await?;
    }
    Ok(())
}

async fn tables(desk: &Desk<'_>, dice: &mut Dice, tally: &mut Tally) -> Result<(), Error> {
    for _ in 0..PARENTS {
        let parent = Said {
            depth: 1 + dice.below(2),
            uses: 3 + dice.below(6),
            lifetime_s: 180 + 90 * dice.below(2),
            ..Said::thrown(dice)
        };
        let ask = desk.delegating(AGENT, &parent.element(desk, CHILD));
        let given = desk.token("a delegation", &ask).await?;
        let mut used = 0;
        for _ in 0..CHILDREN {
            let child = Said::near(&parent, dice);
            let within = child.covers().is_subset(&parent.covers())
                && child.depth < parent.depth
                // What is used up already is not there to be passed on.
                && child.uses + used <= parent.uses
                // By now the parent has less left than it began with.
                && child.lifetime_s < parent.lifetime_s;
            let element = child.element(desk, OTHER);
            let ask = Ask {
                params: desk.by(&given, CHILD).params,
                proofs: vec![desk.proof()],
            };
            let ask = ask
                .with("requested_token_type", super::DELEGATION)
                .with("authorization_details", &json!([element]).to_string());
            let what = format!("{element} of {}", parent.element(desk, CHILD));
            if !within {
                desk.refused(&what, &ask, DETAILS).await?;
                tally.wider += 1;
                continue;
            }
            let body = desk.issued(&what, &ask).await?;
            // As it was asked for, and not silently something else.
            same(
                &what,
                body.pointer("/authorization_details/0"),
                Some(&element),
            )?;
            tally.made += 1;
            let passed = text_at(&body, "/access_token");
            let by = (passed.as_str(), &child, &parent);
            tokens(desk, dice, by, &mut used, tally).await?;
        }
    }
    Ok(())
}

/// Tokens by a delegation that was passed on.
async fn tokens(
    desk: &Desk<'_>,
    dice: &mut Dice,
    (given, child, parent): (&str, &Said, &Said),
    used: &mut usize,
    tally: &mut Tally,
) -> Result<(), Error> {
    let covered: Vec<_> = child.covers().into_iter().collect();
    let mut own = 0;
    for at in 0..TOKENS {
        // The first is covered, the others are whatever comes.
        let any = (dice.one(&METHODS), dice.one(&PATHS));
        let (method, path) = match covered.get(dice.below(covered.len())) {
            Some(one) if at == 0 => *one,
            _ => any,
        };
        let details = desk.details(method, path);
        let ask = desk
            .by(given, OTHER)
            .with("authorization_details", &details);
        let what = format!("{method} {path} by {}", child.element(desk, OTHER));
        let allowed =
            method != "POST" && path.starts_with("/files/") && !path.starts_with("/files/kept/");
        if !covered.contains(&(method, path)) {
            desk.refused(&what, &ask, DETAILS).await?;
            tally.uncovered += 1;
        } else if !allowed {
            desk.refused(&what, &ask, DENIED).await?;
            tally.denied += 1;
        } else if own >= child.uses || *used >= parent.uses {
            desk.refused(&what, &ask, USED_UP).await?;
            tally.used_up += 1;
        } else {
            let claims = claims_of(&desk.token(&what, &ask).await?);
            let asked: Value = serde_json::from_str(&details).unwrap_or_default();
            same(
                &what,
                claims.pointer("/authorization_details"),
                Some(&asked),
            )?;
            same(&what, text_at(&claims, "/sub"), AGENT.to_owned())?;
            same(&what, text_at(&claims, "/act/sub"), OTHER.to_owned())?;
            same(&what, text_at(&claims, "/act/act/sub"), CHILD.to_owned())?;
            (own, *used) = (own + 1, *used + 1);
            tally.tokens += 1;
        }
    }
    Ok(())
}
