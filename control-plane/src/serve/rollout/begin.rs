//! What a start begins with.

use super::super::ServeError;
use super::super::edge::{Module, Pinned, Release};
use super::{kept, note};
use crate::config::Config;
use crate::edges::Served;
use crate::state::Core;
use serde_json::json;

/// What a start begins with: what was good last, as far as things are watched and what
/// the files have is to be tried; else that.
pub fn begin_with(config: &Config, module: &Module) -> Release {
    let files = Release {
        module: module.clone(),
        edge: Served::new(config.edge.clone()),
    };
    if config.edge.rollout.watch_s == 0 {
        return files;
    }
    let Some(mut begin) = kept::read(config) else {
        return files;
    };
    if begin.edge.version != files.edge.version
        && let Some(why) = at_once(config, &begin.edge)
    {
        tracing::warn!(
            edge = files.edge.version,
            "the changed [edge] goes to all proxies at once: {why}"
        );
        begin.edge = files.edge.clone();
    }
    if begin.name() != files.name() {
        tracing::warn!(
            module = begin.module.sha256,
            edge = begin.edge.version,
            waits = files.name(),
            "the start is with the module and the [edge] that were good last; what the files have now is tried"
        );
    }
    begin
}

/// Why nobody waits for the file's `[edge]`, and nobody goes back to `before`.
fn at_once(config: &Config, before: &Served) -> Option<String> {
    let apart = config
        .edges()
        .find_map(|edge| edge.apart_from(&before.edge));
    if let Some(why) = apart {
        return Some(why.to_owned());
    }
    if before.edge.listen != config.edge.listen {
        return Some("its `listen` is another one".to_owned());
    }
    let looser = before.edge.lets_more_through_than(&config.edge);
    looser.then(|| {
        "the one before has something exempt or only observes, and routes or exemptions are others now".to_owned()
    })
}

/// Writes down what the pinned groups run.
///
/// # Errors
/// When an entry is not taken.
pub async fn say_pinned(core: &Core, pinned: &Pinned) -> Result<(), ServeError> {
    for group in &core.config.edge.groups {
        let module = pinned.get(&group.name).map(xds::Module::sha256_hex);
        let edge = core.edges.pinned(&group.name).map(|it| it.version.clone());
        if module.is_none() && edge.is_none() {
            continue;
        }
        let body = json!({
            "event": "pinned", "module": module.unwrap_or_default(), "before": "",
            "edge": edge.unwrap_or_default(), "edge_before": "",
            "first": [group.name], "why": "",
        });
        if !note(core, "rollout", body).await {
            return Err(ServeError::FirstEntry);
        }
    }
    Ok(())
}
