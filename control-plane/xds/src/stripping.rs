//! What a client sends of our own headers, and of those that make another request
//! of its own, is gone before anything looks at it, also where the filter is off.

use capability::headers::{OURS, REINTERPRETING};
use envoy_types::{
    pb::envoy::{
        config::{
            common::mutation_rules::v3::{
                HeaderMutation,
                header_mutation::{Action, RemoveOnMatch},
            },
            core::v3::TypedExtensionConfig,
        },
        extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyMutation,
        r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
    },
    util::pack_any,
};

/// Everything in a name that is no letter and no digit; to CGI it is all `_`. Envoy
/// has made the letters small.
const OTHER: &str = r"[!-/\[-`{-~]";
/// Envoy refuses a regular expression whose program is larger than 100, and RE2 tells
/// sizes to nobody but Envoy: its instructions, roughly and from above.
const PROGRAM_SIZE: usize = 80;
const OTHER_SIZE: usize = 4;

/// The connection manager's extension that removes them.
pub(crate) fn early() -> TypedExtensionConfig {
    let prefixes = OURS.iter().map(|prefix| StringMatcher {
        ignore_case: true,
        match_pattern: Some(MatchPattern::Prefix((*prefix).to_owned())),
    });
    let spelt = spellings().into_iter().map(|regex| StringMatcher {
        // Envoy refuses it beside a regular expression.
        ignore_case: false,
        match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
            regex,
            ..Default::default()
        })),
    });
    let mutations = prefixes.chain(spelt).map(|matcher| HeaderMutation {
        action: Some(Action::RemoveOnMatch(RemoveOnMatch {
            key_matcher: Some(matcher),
        })),
    });
    TypedExtensionConfig {
        name: "envoy.http.early_header_mutation.header_mutation".to_owned(),
        typed_config: Some(pack_any(EarlyMutation {
            mutations: mutations.collect(),
        })),
    }
}

/// Regular expressions for every spelling of each name, as few as their sizes allow:
/// each is tried on each header.
fn spellings() -> Vec<String> {
    let ours = OURS.iter().map(|prefix| (*prefix, r"\C*"));
    let names = REINTERPRETING.iter().map(|name| (*name, ""));
    let mut all: Vec<(String, usize)> = Vec::new();
    for (name, rest) in ours.chain(names) {
        let regex = format!("{}{rest}", name.replace('-', OTHER));
        let others = name.matches('-').count();
        let size = name.len() + others * OTHER_SIZE + 2;
        match all.last_mut() {
            Some((one, used)) if *used + size <= PROGRAM_SIZE => {
                one.push('|');
                one.push_str(&regex);
                *used += size;
            }
            _ => all.push((regex, size)),
        }
    }
    all.into_iter().map(|(regex, _)| regex).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_in_one_expression() {
        let all = spellings();
        let each: Vec<&str> = all.iter().flat_map(|regex| regex.split('|')).collect();
        assert_eq!(each.len(), OURS.len() + REINTERPRETING.len());
        assert_eq!(each[0], format!("x{OTHER}envoy{OTHER}\\C*"));
        assert!(each.contains(&format!("x{OTHER}original{OTHER}url").as_str()));
        assert!(each.contains(&"forwarded"));
        assert!(all.len() < each.len(), "{all:#?}");
    }
}
