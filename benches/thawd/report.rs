//! What a measure found: as a table on the terminal, as JSON in target/bench, as a section of docs/BENCHMARKS.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bed::repository;
use crate::document::{Section, compose};
use crate::stats::{Series, human};
use crate::{machine, peers};

/// What was read from traces by hand, beside the measure of cold starts.
const COLD_PROFILE: &str = include_str!("cold_profile.md");

/// A line that the project set itself.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// One figure that is not a list of samples.
#[derive(Debug, Clone)]
pub struct Fact {
    what: String,
    value: f64,
    unit: &'static str,
    goal: Option<Goal>,
}

/// Several contenders that were measured in turns.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// Heading, if there are several.
    pub title: String,
    /// The contenders.
    pub series: Vec<Series>,
    /// Name of the one whose median is 1 in the column of ratios.
    pub reference: String,
}

/// All that one measure found.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What was measured, in a line.
    pub title: String,
    /// How, in sentences.
    pub method: String,
    /// Timed comparisons.
    pub comparisons: Vec<Comparison>,
    /// Other figures.
    pub facts: Vec<Fact>,
    /// What the reader should know of this run.
    pub notes: Vec<String>,
}

impl Outcome {
    /// Nothing found yet.
    pub fn new(title: &str, method: &str) -> Self {
        Self { title: title.to_owned(), method: method.to_owned(), ..Self::default() }
    }

    /// Adds a comparison.
    pub fn compare(&mut self, title: &str, series: Vec<Series>, reference: &str) {
        self.comparisons.push(Comparison { title: title.to_owned(), series, reference: reference.to_owned() });
    }

    /// Adds a figure.
    pub fn fact(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.facts.push(Fact { what: what.into(), value, unit, goal: None });
    }

    /// Adds a figure that has a goal.
    pub fn goal(&mut self, what: impl Into<String>, value: f64, unit: &'static str, goal: Goal) {
        self.facts.push(Fact { what: what.into(), value, unit, goal: Some(goal) });
    }

    /// Adds a sentence.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

/// Median of the series called `name`, microseconds.
pub fn median(series: &[Series], name: &str) -> Option<f64> {
    series.iter().find(|one| one.name == name).map(Series::median)
}

impl Fact {
    fn met(&self) -> Option<bool> {
        // Without a value (a peer is absent) nothing is met or missed.
        self.goal.filter(|_| !self.value.is_nan()).map(|goal| match goal {
            Goal::AtMost(most) => self.value <= most,
            Goal::AtLeast(least) => self.value >= least,
        })
    }

    fn goal_text(&self) -> String {
        match self.goal {
            None => String::new(),
            Some(Goal::AtMost(most)) => format!("≤ {}", amount(most, self.unit)),
            Some(Goal::AtLeast(least)) => format!("≥ {}", amount(least, self.unit)),
        }
    }

    fn json(&self) -> Value {
        json!({"what": self.what, "value": self.value, "unit": self.unit, "goal": self.goal_text(), "met": self.met()})
    }
}

fn amount(value: f64, unit: &str) -> String {
    match unit {
        _ if value.is_nan() => "not measured".to_owned(),
        "us" => human(value),
        "bytes" => crate::stats::human_bytes(value),
        "" => format!("{value}"),
        unit if value.fract() == 0.0 => format!("{value} {unit}"),
        unit if value.abs() >= 100.0 => format!("{value:.0} {unit}"),
        unit => format!("{value:.2} {unit}"),
    }
}

/// The circumstances of one measure.
#[derive(Debug)]
pub struct Circumstances {
    date: String,
    load: f64,
    busy: f64,
}

/// More of the machine in other hands than this makes figures doubtful.
const BUSY: f64 = 0.1;

impl Circumstances {
    /// Now. Looks at the machine for half a second.
    pub fn look() -> Self {
        Self { date: machine::date(), load: machine::load(), busy: machine::busy_share() }
    }
}

/// Finishes a measure: prints it and writes its JSON.
pub fn publish(id: &str, outcome: &Outcome, before: &Circumstances, seconds: f64) -> Result<()> {
    let after = machine::busy_share();
    let busy = before.busy.max(after);
    let document = json!({
        "id": id, "title": outcome.title, "method": outcome.method, "date": before.date, "seconds": seconds.round(),
        "machine": machine::describe(), "versions": peers::versions(),
        "load_before": before.load, "load_after": machine::load(),
        "busy_before": percent(before.busy), "busy_after": percent(after), "busy": busy > BUSY,
        "comparisons": outcome.comparisons.iter().map(|comparison| json!({
            "title": comparison.title, "reference": comparison.reference,
            "series": comparison.series.iter().map(Series::json).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "facts": outcome.facts.iter().map(|fact| {
            let mut fact_json = fact.json();
            fact_json["text"] = json!(amount(fact.value, fact.unit));
            fact_json
        }).collect::<Vec<_>>(),
        "notes": outcome.notes,
    });
    let directory = directory();
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{id}.json"));
    fs::write(&path, serde_json::to_string_pretty(&document)? + "\n").context("write the JSON")?;
    println!("{}", section(&document));
    println!("raw figures: {}\n", path.display());
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("bench")
}

/// Markdown that is readable as it is.
fn section(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut out =
        format!("## {} (`{}`)\n\n{}\n\n", text(&document["title"]), text(&document["id"]), text(&document["method"]));
    let busy = if document["busy"] == true { "; **other work ran on the machine, so expect noise**" } else { "" };
    let _ = writeln!(
        out,
        "{}, {} s, load average {} before and {} after, processors busy with other work {} before and {} after{busy}.\n",
        text(&document["date"]),
        document["seconds"],
        document["load_before"],
        document["load_after"],
        text(&document["busy_before"]),
        text(&document["busy_after"]),
    );
    for comparison in list(&document["comparisons"]) {
        if comparison["title"] != "" {
            let _ = writeln!(out, "### {}\n", text(&comparison["title"]));
        }
        let series = list(&comparison["series"]);
        let reference = series.iter().find(|one| one["name"] == comparison["reference"]);
        let reference = reference.and_then(|one| one["median"].as_f64()).unwrap_or(f64::NAN);
        let mut rows = vec![["", "n", "min", "median", "p90", "p99", "ratio of medians"].map(str::to_owned)];
        for one in &series {
            let time = |key: &str| human(one[key].as_f64().unwrap_or(f64::NAN));
            let ratio = one["median"].as_f64().unwrap_or(f64::NAN) / reference;
            rows.push([
                text(&one["name"]),
                one["n"].to_string(),
                time("min"),
                time("median"),
                time("p90"),
                time("p99"),
                format!("{ratio:.2}"),
            ]);
        }
        out += &table(&rows);
        out.push('\n');
    }
    let facts = list(&document["facts"]);
    if !facts.is_empty() {
        let mut rows = vec![["", "measured", "goal", ""].map(str::to_owned)];
        for fact in facts {
            let verdict = match fact["met"].as_bool() {
                Some(true) => "met",
                Some(false) => "missed",
                None => "",
            };
            rows.push([text(&fact["what"]), text(&fact["text"]), text(&fact["goal"]), verdict.to_owned()]);
        }
        out += &table(&rows);
        out.push('\n');
    }
    for note in list(&document["notes"]) {
        let _ = writeln!(out, "- {}", text(&note));
    }
    out
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let space = " ".repeat(width(column) - cell.chars().count());
            // Names to the left, figures to the right.
            let _ = if column == 0 { write!(out, "| {cell}{space} ") } else { write!(out, "| {space}{cell} ") };
        }
        out += "|\n";
        if index == 0 {
            for column in 0..N {
                let dashes = "-".repeat(width(column) - 1);
                let _ = if column == 0 { write!(out, "| {dashes}- ") } else { write!(out, "| {dashes}: ") };
            }
            out += "|\n";
        }
    }
    out
}

/// Rewrites docs/BENCHMARKS.md with what was just `measured`; the other sections stay.
pub fn write_document(order: &[&str], measured: &[&str]) -> Result<()> {
    let introduction = "# Benchmarks\n\nWritten by `make bench`; do not edit. Each section holds the last run of one measure \
         (`make bench ONLY=claim,cold` repeats some).\n\n\
         Contenders of a comparison take turns, one sample each per round, in an order that rotates, with a pause of \
         20 ms between samples; two rounds go before that and do not count. A time is taken by the client: from its decision to act (request \
         written, process spawned) to the first byte of the command's output in its hands. p90 and p99 are by nearest \
         rank. All containers run the same root file system: busybox, built from `images/test`. The figures of one \
         table can be compared with each other; those of different machines or days cannot.\n";
    let (mut fresh, mut spare) = (BTreeMap::new(), BTreeMap::new());
    for id in order {
        let Ok(text) = fs::read_to_string(directory().join(format!("{id}.json"))) else { continue };
        let document: Value = serde_json::from_str(&text).with_context(|| format!("{id}.json"))?;
        let found = Section { machine: machine_text(&document), text: section(&document) };
        if measured.contains(id) { &mut fresh } else { &mut spare }.insert((*id).to_owned(), found);
    }
    let path: &Path = &repository().join("docs/BENCHMARKS.md");
    let old = fs::read_to_string(path).unwrap_or_default();
    let new = compose(introduction, order, &old, &fresh, &spare, ("cold", COLD_PROFILE));
    fs::write(path, new).context("write docs/BENCHMARKS.md")
}

fn machine_text(document: &Value) -> String {
    let machine = &document["machine"];
    let versions = document["versions"].as_object().cloned().unwrap_or_default();
    let versions: Vec<_> =
        versions.values().filter_map(Value::as_str).map(|text| text.replace("version ", "")).collect();
    format!(
        "Machine: {} processors ({}), {} GiB, Linux {}, cgroups {}. Peers: {}.",
        machine["cpus"],
        machine["cpu"].as_str().unwrap_or_default(),
        machine["memory_gib"],
        machine["kernel"].as_str().unwrap_or_default(),
        machine["cgroups"].as_str().unwrap_or_default(),
        versions.join("; ")
    )
}
