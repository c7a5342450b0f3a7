//! What the rounds come to: medians, differences within rounds, and their spread.

use serde_json::{Map, Value, json};

use super::edge::{CONNECTIONS, PACED_REQUESTS, RATE, REQUESTS};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// An Envoy with nothing in front of its upstream.
    Bare,
    /// The same with the access log that Writ's listener writes.
    Logged,
    /// Two signature checks and a stream answer in plaintext: the yardstick.
    Floor,
    /// The same with the stream over mutual TLS, as Writ's is.
    FloorTls,
    /// `jwt_authn` and `ext_authz`.
    Peer,
    /// Writ.
    Writ,
}

/// All of them.
pub const VARIANTS: [Variant; 6] = [
    Variant::Bare,
    Variant::Logged,
    Variant::Floor,
    Variant::FloorTls,
    Variant::Peer,
    Variant::Writ,
];

/// What Writ may add, in what the floor adds in the same round.
const BUDGET: f64 = 1.5;
/// A worker that is busy less than this is woken more often than it need be,
/// which counts as its cost.
const SATURATED: f64 = 0.9;

/// How requests came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As fast as they were answered.
    Saturated,
    /// All variants at one rate.
    Paced,
}

/// One variant in one mode of one round.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// CPU of the Envoy process for each request, in microseconds.
    pub cpu_us: f64,
    /// Requests per second.
    pub per_s: f64,
    /// CPU of the Envoy process in parts of one CPU.
    pub envoy_busy: f64,
    /// CPU of the control plane for each request, in microseconds.
    pub control_plane_us: f64,
    /// Control plane, upstream and load generator together.
    pub rest_busy: f64,
    /// Everything else on the machine, which should be nothing.
    pub strangers_busy: f64,
}

/// One round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Each variant in each mode, once.
    pub figures: Vec<(Mode, Variant, Figure)>,
}

/// All rounds.
pub struct Report {
    /// In the order in which they were measured.
    pub rounds: Vec<Round>,
    /// Whether Envoy had a CPU of its own.
    pub separated: bool,
}

/// Middle, least and most of one figure over all rounds.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Variant {
    fn key(self) -> &'static str {
        match self {
            Variant::Bare => "bare",
            Variant::Logged => "bare_logged",
            Variant::Floor => "floor",
            Variant::FloorTls => "floor_mtls",
            Variant::Peer => "peer",
            Variant::Writ => "writ",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Variant::Bare => "bare Envoy",
            Variant::Logged => "bare, with Writ's access log",
            Variant::Floor => "floor: two checks, a stream answer",
            Variant::FloorTls => "floor, its stream over mTLS",
            Variant::Peer => "peer: `jwt_authn`, `ext_authz` over mTLS",
            Variant::Writ => "Writ",
        }
    }
}

impl Mode {
    fn key(self) -> &'static str {
        match self {
            Mode::Saturated => "saturated",
            Mode::Paced => "paced",
        }
    }

    fn title(self) -> String {
        match self {
            Mode::Saturated => {
                format!("{REQUESTS} requests a round, as fast as they are answered")
            }
            Mode::Paced => format!("{PACED_REQUESTS} requests a round, all at {RATE}/s"),
        }
    }
}

impl Round {
    fn of(&self, mode: Mode, variant: Variant) -> Option<&Figure> {
        let found = self.figures.iter();
        let mut found = found.filter(|(m, v, _)| (*m, *v) == (mode, variant));
        found.next().map(|(_, _, figure)| figure)
    }

    /// What a variant costs above the bare one of the same round.
    fn added(&self, mode: Mode, variant: Variant) -> Option<f64> {
        let bare = self.of(mode, Variant::Bare)?.cpu_us;
        Some(self.of(mode, variant)?.cpu_us - bare)
    }

    /// Writ's added cost in what the floor adds.
    fn ratio(&self, mode: Mode) -> Option<f64> {
        Some(self.added(mode, Variant::Writ)? / self.added(mode, Variant::Floor)?)
    }
}

impl Report {
    fn over(&self, pick: impl Fn(&Round) -> Option<f64>) -> Spread {
        Spread::of(self.rounds.iter().filter_map(pick).collect())
    }

    fn median(&self, mode: Mode, variant: Variant, pick: fn(&Figure) -> f64) -> f64 {
        self.over(|round| round.of(mode, variant).map(pick)).median
    }

    /// As [`Round::ratio`], of each variant's cheapest round: other programs on
    /// the machine can only add to a cost.
    fn quietest(&self, mode: Mode) -> f64 {
        let least = |variant| {
            let cost = |round: &Round| round.of(mode, variant).map(|f| f.cpu_us);
            self.over(cost).least
        };
        let bare = least(Variant::Bare);
        (least(Variant::Writ) - bare) / (least(Variant::Floor) - bare)
    }

    /// Two tables with their verdicts.
    pub fn markdown(&self) -> String {
        let own = if self.separated {
            "on a CPU of its own"
        } else {
            "sharing its CPU"
        };
        let rounds = self.rounds.len();
        let mut out = format!(
            "\nOne Envoy worker {own}, {CONNECTIONS} connections, medians of {rounds} rounds; \
             differences are taken within rounds, with the least and the most.\n"
        );
        for mode in [Mode::Saturated, Mode::Paced] {
            out.push_str(&self.table(mode));
        }
        out
    }

    fn table(&self, mode: Mode) -> String {
        let mut out = format!(
            "\n{}:\n\n| | Envoy's CPU per request | in the quietest round | above bare | requests/s | Envoy busy | all others busy | strangers |\n|---|---|---|---|---|---|---|---|\n",
            mode.title()
        );
        for variant in VARIANTS {
            let of = |pick| self.median(mode, variant, pick);
            let added = match variant {
                Variant::Bare => String::new(),
                _ => self.over(|round| round.added(mode, variant)).text(" µs"),
            };
            out.push_str(&format!(
                "| {} | {:.1} µs | {:.1} µs | {added} | {:.0} | {:.0} % | {:.0} % | {:.0} % |\n",
                variant.title(),
                of(|f| f.cpu_us),
                self.over(|round| round.of(mode, variant).map(|f| f.cpu_us))
                    .least,
                of(|f| f.per_s),
                of(|f| f.envoy_busy) * 100.0,
                of(|f| f.rest_busy) * 100.0,
                of(|f| f.strangers_busy) * 100.0,
            ));
        }
        let ratio = self.over(|round| round.ratio(mode));
        let verdict = if ratio.median <= BUDGET {
            "within"
        } else {
            "over"
        };
        out.push_str(&format!(
            "\nWrit adds {} times what the floor adds: {verdict} the budget of {BUDGET}, which is {:.0} µs here. \
             Of the quietest rounds it is {:.2} times. \
             The control plane takes {:.0} µs of its own CPU per request.\n",
            ratio.text(""),
            self.over(|round| round.added(mode, Variant::Floor)).median * BUDGET,
            self.quietest(mode),
            self.median(mode, Variant::Writ, |f| f.control_plane_us),
        ));
        if mode == Mode::Saturated {
            out.push_str(&self.idlers());
        }
        out
    }

    /// Which workers had time left, so that their cost is not comparable.
    fn idlers(&self) -> String {
        let idle: Vec<&str> = VARIANTS
            .into_iter()
            .filter(|v| self.median(Mode::Saturated, *v, |f| f.envoy_busy) < SATURATED)
            .map(Variant::title)
            .collect();
        if idle.is_empty() {
            return String::new();
        }
        format!(
            "Not saturated, so dearer than they need be, and better compared at one rate: {}.\n",
            idle.join("; ")
        )
    }

    /// Everything, for machines.
    pub fn json(&self) -> Value {
        let mut modes = Map::new();
        for mode in [Mode::Saturated, Mode::Paced] {
            let mut variants = Map::new();
            for variant in VARIANTS {
                let of = |pick| self.median(mode, variant, pick);
                let mut row = json!({
                    "cpu_us_per_request": of(|f| f.cpu_us),
                    "quietest_us_per_request": self
                        .over(|round| round.of(mode, variant).map(|f| f.cpu_us))
                        .least,
                    "requests_per_s": of(|f| f.per_s),
                    "envoy_busy": of(|f| f.envoy_busy),
                    "rest_busy": of(|f| f.rest_busy),
                    "strangers_busy": of(|f| f.strangers_busy),
                });
                if variant != Variant::Bare {
                    let added = self.over(|round| round.added(mode, variant));
                    set(&mut row, "added_us", added.json());
                }
                if variant == Variant::Writ {
                    let own = of(|f| f.control_plane_us);
                    set(&mut row, "control_plane_us_per_request", json!(own));
                }
                variants.insert(variant.key().to_owned(), row);
            }
            let ratio = self.over(|round| round.ratio(mode));
            let floor = self.over(|round| round.added(mode, Variant::Floor));
            modes.insert(
                mode.key().to_owned(),
                json!({
                    "variants": variants,
                    "writ_in_floors": ratio.json(),
                    "writ_in_floors_quietest": self.quietest(mode),
                    "budget_in_floors": BUDGET,
                    "budget_us": floor.median * BUDGET,
                    "within_budget": ratio.median <= BUDGET,
                }),
            );
        }
        json!({
            "connections": CONNECTIONS,
            "requests_per_round": REQUESTS,
            "paced_requests_per_round": PACED_REQUESTS,
            "paced_requests_per_s": RATE,
            "own_cpu": self.separated,
            "modes": modes,
            "rounds": self.rounds.iter().map(round_json).collect::<Vec<_>>(),
        })
    }
}

fn round_json(round: &Round) -> Value {
    let mut modes = Map::new();
    for mode in [Mode::Saturated, Mode::Paced] {
        let mut out = json!({});
        for (_, variant, figure) in round.figures.iter().filter(|(m, _, _)| *m == mode) {
            let figure = json!({
                "cpu_us_per_request": figure.cpu_us,
                "requests_per_s": figure.per_s,
                "envoy_busy": figure.envoy_busy,
                "rest_busy": figure.rest_busy,
                "strangers_busy": figure.strangers_busy,
            });
            set(&mut out, variant.key(), figure);
        }
        modes.insert(mode.key().to_owned(), out);
    }
    Value::Object(modes)
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

    fn text(self, unit: &str) -> String {
        let digits = if unit.is_empty() { 2 } else { 0 };
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

    fn figure(cpu_us: f64) -> Figure {
        Figure {
            cpu_us,
            per_s: 1_000.0,
            envoy_busy: 1.0,
            control_plane_us: 10.0,
            rest_busy: 0.5,
            strangers_busy: 0.0,
        }
    }

    fn report(writ: [f64; 3]) -> Report {
        let round = |writ| {
            let costs = [40.0, 45.0, 140.0, 150.0, 160.0, writ];
            let modes = [Mode::Saturated, Mode::Paced].into_iter();
            let figures = modes.flat_map(|mode| {
                let each = VARIANTS.into_iter().zip(costs);
                each.map(move |(variant, cost)| (mode, variant, figure(cost)))
            });
            Round {
                figures: figures.collect(),
            }
        };
        Report {
            rounds: writ.into_iter().map(round).collect(),
            separated: true,
        }
    }

    #[test]
    fn the_budget_is_in_floors_of_the_same_round() {
        let report = report([180.0, 190.0, 400.0]);
        let json = report.json();
        let saturated = &json["modes"]["saturated"];
        assert_eq!(saturated["writ_in_floors"]["median"], json!(1.5));
        assert_eq!(saturated["writ_in_floors"]["most"], json!(3.6));
        assert_eq!(saturated["writ_in_floors_quietest"], json!(1.4));
        assert_eq!(saturated["budget_us"], json!(150.0));
        assert_eq!(saturated["within_budget"], json!(true));
        assert_eq!(
            saturated["variants"]["writ"]["added_us"]["median"],
            json!(150.0)
        );
        assert!(report.markdown().contains("1.50 (1.40 to 3.60) times"));
    }

    #[test]
    fn over_the_budget_says_so() {
        let report = report([191.0, 195.0, 400.0]);
        assert_eq!(
            report.json()["modes"]["paced"]["within_budget"],
            json!(false)
        );
        assert!(report.markdown().contains("over the budget"));
    }
}
