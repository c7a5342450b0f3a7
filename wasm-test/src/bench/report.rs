//! What the rounds come to: medians, ratios within rounds, and their spread.

use serde_json::{Value, json};

use super::edge::{CONNECTIONS, REQUESTS};
use super::footprint::Footprint;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// An Envoy with nothing in front of its upstream.
    Bare,
    /// The same with the access log that Writ's listener writes.
    Logged,
    /// A wasm filter that lets everything pass.
    Empty,
    /// The host's two signature checks and the stream alone, called from wasm.
    Calls,
    /// `jwt_authn`.
    Jwt,
    /// `jwt_authn` and `ext_authz`: the yardstick.
    Peer,
    /// The same over mutual TLS, as Writ's stream is.
    PeerTls,
    /// Writ, with both signatures checked in the filter.
    Edge,
    /// Writ, with `edge.token_check = "record"`.
    Record,
}

/// All of them.
pub const ROWS: [Row; 9] = [
    Row::Bare,
    Row::Logged,
    Row::Empty,
    Row::Calls,
    Row::Jwt,
    Row::Peer,
    Row::PeerTls,
    Row::Edge,
    Row::Record,
];

/// A worker that is busy less than this is woken more often than it need be,
/// which counts as its cost.
const SATURATED: f64 = 0.9;

/// One row of one round.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// CPU of the Envoy process for each request, in microseconds.
    pub cpu_us: f64,
    /// Requests per second.
    pub rps: f64,
    /// What half of the requests took at most, in milliseconds.
    pub p50_ms: f64,
    /// What all but a hundredth of them took at most, in milliseconds.
    pub p99_ms: f64,
    /// CPU of the Envoy process in parts of one CPU.
    pub envoy_busy: f64,
    /// CPU of the control plane for each request, in microseconds.
    pub control_plane_us: f64,
    /// Control planes, upstream and load generator together.
    pub rest_busy: f64,
    /// Everything else on the machine, which should be nothing.
    pub strangers_busy: f64,
}

/// One round: each row once.
#[derive(Clone, Debug, Default)]
pub struct Round(pub Vec<(Row, Figure)>);

/// All rounds.
pub struct Report {
    /// In the order in which they were measured.
    pub rounds: Vec<Round>,
    /// Whether Envoy had a CPU of its own.
    pub separated: bool,
    /// What is no rate.
    pub footprint: Footprint,
}

/// Middle, least and most of one figure over all rounds.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

/// A figure that has a goal, taken within each round.
struct Ratio {
    name: &'static str,
    title: &'static str,
    /// At most this; none: it is told and not judged.
    goal: Option<f64>,
    of: fn(&Round) -> Option<f64>,
}

const RATIOS: [Ratio; 5] = [
    Ratio {
        name: "cpu_edge",
        title: "Writ's CPU in that of `jwt_authn` and `ext_authz`",
        goal: Some(1.1),
        of: |round| Some(round.of(Row::Edge)?.cpu_us / round.of(Row::Peer)?.cpu_us),
    },
    Ratio {
        name: "cpu_record",
        title: "the same with `token_check = \"record\"`",
        goal: Some(0.85),
        of: |round| Some(round.of(Row::Record)?.cpu_us / round.of(Row::Peer)?.cpu_us),
    },
    Ratio {
        name: "filter_us",
        title: "the filter's CPU outside signature checks and stream, µs",
        goal: Some(25.0),
        of: |round| Some(round.of(Row::Edge)?.cpu_us - round.of(Row::Calls)?.cpu_us),
    },
    Ratio {
        name: "decision_us",
        title: "the control plane's CPU per decision, µs",
        goal: Some(60.0),
        of: |round| Some(round.of(Row::Edge)?.control_plane_us),
    },
    Ratio {
        name: "rps",
        title: "Writ's requests per second in those of `jwt_authn` and `ext_authz`",
        goal: None,
        of: |round| Some(round.of(Row::Edge)?.rps / round.of(Row::Peer)?.rps),
    },
];

impl Row {
    /// Its name in JSON.
    fn name(self) -> &'static str {
        match self {
            Row::Bare => "bare",
            Row::Logged => "bare_logged",
            Row::Empty => "empty_wasm",
            Row::Calls => "calls_alone",
            Row::Jwt => "jwt_authn",
            Row::Peer => "jwt_authn_ext_authz",
            Row::PeerTls => "jwt_authn_ext_authz_mtls",
            Row::Edge => "writ_edge",
            Row::Record => "writ_record",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Row::Bare => "bare Envoy",
            Row::Logged => "bare, with Writ's access log",
            Row::Empty => "empty wasm filter",
            Row::Calls => "two checks and the stream alone",
            Row::Jwt => "`jwt_authn`",
            Row::Peer => "`jwt_authn`, `ext_authz`",
            Row::PeerTls => "the same, over mTLS",
            Row::Edge => "Writ",
            Row::Record => "Writ, `token_check = \"record\"`",
        }
    }
}

impl Round {
    fn of(&self, row: Row) -> Option<&Figure> {
        let mut found = self.0.iter().filter(|(known, _)| *known == row);
        found.next().map(|(_, figure)| figure)
    }
}

impl Report {
    fn over(&self, pick: impl Fn(&Round) -> Option<f64>) -> Spread {
        Spread::of(self.rounds.iter().filter_map(pick).collect())
    }

    fn row(&self, row: Row, pick: fn(&Figure) -> f64) -> Spread {
        self.over(|round| round.of(row).map(pick))
    }

    /// Tables with their verdicts.
    pub fn markdown(&self) -> String {
        let own = if self.separated {
            "on a CPU of its own"
        } else {
            "sharing its CPU"
        };
        let mut out = format!(
            "\nOne Envoy worker {own}, {CONNECTIONS} connections, {REQUESTS} requests a round, \
             medians of {} rounds with the least and the most.\n\n\
             | | Envoy's CPU per request | requests/s | p50 | p99 | Envoy busy | all others busy | strangers |\n\
             |---|---|---|---|---|---|---|---|\n",
            self.rounds.len()
        );
        for row in ROWS {
            let of = |pick| self.row(row, pick).median;
            out.push_str(&format!(
                "| {} | {} | {:.0} | {:.1} ms | {:.1} ms | {:.0} % | {:.0} % | {:.0} % |\n",
                row.title(),
                self.row(row, |f| f.cpu_us).text(1, " µs"),
                of(|f| f.rps),
                of(|f| f.p50_ms),
                of(|f| f.p99_ms),
                of(|f| f.envoy_busy) * 100.0,
                of(|f| f.rest_busy) * 100.0,
                of(|f| f.strangers_busy) * 100.0,
            ));
        }
        out.push_str("\n| within rounds | | goal | |\n|---|---|---|---|\n");
        for ratio in RATIOS {
            let spread = self.over(ratio.of);
            let (goal, verdict) = match ratio.goal {
                Some(goal) if spread.median <= goal => (goal.to_string(), "met"),
                Some(goal) => (goal.to_string(), "missed"),
                None => (String::new(), ""),
            };
            let text = spread.text(2, "");
            out.push_str(&format!(
                "| {} | {text} | {goal} | {verdict} |\n",
                ratio.title
            ));
        }
        out.push_str(&self.idlers());
        out.push_str(&self.footprint.markdown());
        out
    }

    /// Which workers had time left, so that their cost is not comparable.
    fn idlers(&self) -> String {
        let idle: Vec<&str> = ROWS
            .into_iter()
            .filter(|row| self.row(*row, |f| f.envoy_busy).median < SATURATED)
            .map(Row::title)
            .collect();
        if idle.is_empty() {
            return String::new();
        }
        format!(
            "\nNot saturated, so dearer than they need be: {}.\n",
            idle.join("; ")
        )
    }

    /// Everything, for machines.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = ROWS
            .into_iter()
            .map(|row| {
                let mut out = figures(|pick| self.row(row, pick).median);
                let spread = self.row(row, |f| f.cpu_us);
                set(&mut out, "name", json!(row.name()));
                set(&mut out, "cpu_us_spread", spread.json());
                out
            })
            .collect();
        let mut ratios = json!({});
        let mut spreads = json!({});
        let mut met = json!({});
        for ratio in RATIOS {
            let spread = self.over(ratio.of);
            set(&mut ratios, ratio.name, json!(spread.median));
            set(&mut spreads, ratio.name, spread.json());
            if let Some(goal) = ratio.goal {
                let verdict = json!({"goal": goal, "met": spread.median <= goal});
                set(&mut met, ratio.name, verdict);
            }
        }
        json!({
            "rounds": self.rounds.len(),
            "rows": rows,
            "ratios": ratios,
            "ratios_spread": spreads,
            "goals": met,
            "connections": CONNECTIONS,
            "requests_per_round": REQUESTS,
            "own_cpu": self.separated,
            "footprint": self.footprint.json(),
            "each_round": self.rounds.iter().map(round_json).collect::<Vec<_>>(),
        })
    }
}

fn figures(of: impl Fn(fn(&Figure) -> f64) -> f64) -> Value {
    json!({
        "rps": of(|f| f.rps),
        "cpu_us_per_request": of(|f| f.cpu_us),
        "p50_ms": of(|f| f.p50_ms),
        "p99_ms": of(|f| f.p99_ms),
        "control_plane_us_per_request": of(|f| f.control_plane_us),
        "envoy_busy": of(|f| f.envoy_busy),
        "rest_busy": of(|f| f.rest_busy),
        "strangers_busy": of(|f| f.strangers_busy),
    })
}

fn round_json(round: &Round) -> Value {
    let mut out = json!({});
    for (row, figure) in &round.0 {
        set(&mut out, row.name(), figures(|pick| pick(figure)));
    }
    out
}

/// Sets a member of an object.
fn set(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Spread {
            median: at(values.len() / 2),
            least: at(0),
            most: at(values.len().saturating_sub(1)),
        }
    }

    fn text(self, digits: usize, unit: &str) -> String {
        let Spread {
            median,
            least,
            most,
        } = self;
        format!("{median:.digits$}{unit} ({least:.digits$} to {most:.digits$})")
    }

    fn json(self) -> Value {
        json!({"median": self.median, "least": self.least, "most": self.most})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::footprint::{Footprint, Sync};

    fn figure(cpu_us: f64) -> Figure {
        Figure {
            cpu_us,
            rps: 1_000_000.0 / cpu_us,
            p50_ms: 1.0,
            p99_ms: 2.0,
            envoy_busy: 1.0,
            control_plane_us: 50.0,
            rest_busy: 0.5,
            strangers_busy: 0.0,
        }
    }

    fn report(edge: [f64; 3]) -> Report {
        let round = |edge| {
            let costs = [40.0, 45.0, 50.0, 150.0, 90.0, 160.0, 170.0, edge, 136.0];
            let each = ROWS.into_iter().zip(costs);
            Round(each.map(|(row, cost)| (row, figure(cost))).collect())
        };
        let directory = tempfile::tempdir().unwrap();
        Report {
            rounds: edge.into_iter().map(round).collect(),
            separated: true,
            footprint: Footprint {
                sync: Sync::of(directory.path()).unwrap(),
                module_bytes: 600_000,
                worker_kb: 1.0,
                vm_kb: 2.0,
                first_vm_kb: 3.0,
                held_kb: 4.0,
                held_control_plane_kb: 5.0,
                start_ms: 6.0,
                start_cpu_ms: 7.0,
            },
        }
    }

    #[test]
    fn ratios_are_within_rounds_and_their_medians_are_told() {
        let json = report([160.0, 168.0, 400.0]).json();
        assert_eq!(json["rounds"], 3);
        assert_eq!(json["ratios"]["cpu_edge"], json!(1.05));
        assert_eq!(json["ratios_spread"]["cpu_edge"]["most"], json!(2.5));
        assert_eq!(json["ratios"]["cpu_record"], json!(0.85));
        assert_eq!(json["ratios"]["filter_us"], json!(18.0));
        assert_eq!(json["ratios"]["decision_us"], json!(50.0));
        assert_eq!(json["goals"]["cpu_edge"]["met"], json!(true));
        assert_eq!(json["footprint"]["module_bytes"], 600_000);
        let rows = json["rows"].as_array().unwrap();
        assert_eq!(rows.len(), ROWS.len());
        let edge = rows.iter().find(|row| row["name"] == "writ_edge").unwrap();
        assert_eq!(edge["cpu_us_per_request"], json!(168.0));
        assert_eq!(
            (&edge["p50_ms"], &edge["p99_ms"]),
            (&json!(1.0), &json!(2.0))
        );
    }

    #[test]
    fn a_goal_that_is_missed_says_so() {
        let report = report([177.0, 178.0, 180.0]);
        let json = report.json();
        assert_eq!(json["goals"]["cpu_edge"]["met"], json!(false));
        assert_eq!(json["goals"]["filter_us"]["met"], json!(false));
        let text = report.markdown();
        assert_eq!(text.matches("| missed |").count(), 2, "{text}");
        assert_eq!(text.matches("| met |").count(), 2, "{text}");
    }
}
