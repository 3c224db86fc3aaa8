//! Figures as a table for people or JSON for machines.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

/// What one rival reached under one condition: a value for each round.
pub struct Figure {
    /// The condition, as `95 % leased, 8 allocators`.
    pub condition: String,
    /// Who was measured.
    pub rival: &'static str,
    /// What was measured, as `/s`.
    pub unit: &'static str,
    /// The value of each round, at least one.
    pub values: Vec<f64>,
}

impl Figure {
    /// The middle one of the values.
    pub fn median(&self) -> f64 {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    fn extremes(&self) -> (f64, f64) {
        self.values
            .iter()
            .fold((f64::MAX, 0.0), |(least, most), value| {
                (least.min(*value), most.max(*value))
            })
    }
}

/// Below which so large a part of the latencies is, in milliseconds.
pub fn quantile_ms(latencies: &[Duration], at: f64) -> f64 {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    let found = sorted.get((last as f64 * at).round() as usize);
    found.map_or(0.0, |found| found.as_secs_f64() * 1000.0)
}

/// Prints figures; the ratio is to the first rival of the same condition and unit.
pub fn print(figures: &[Figure], json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let ratio = |figure: &Figure| {
        let first = figures
            .iter()
            .find(|other| other.condition == figure.condition && other.unit == figure.unit);
        first.map_or(1.0, |first| figure.median() / first.median())
    };
    if json {
        let rows: Vec<_> = figures
            .iter()
            .map(|figure| {
                let (least, most) = figure.extremes();
                json!({ "condition": figure.condition, "rival": figure.rival, "unit": figure.unit, "median": figure.median(),
                    "min": least, "max": most, "ratio": ratio(figure), "rounds": figure.values.len() })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<44} {:<34} {:>16}  {:>17}  {:>6}",
        "CONDITION", "RIVAL", "MEDIAN", "MIN–MAX", "RATIO"
    )?;
    for figure in figures {
        let (least, most) = figure.extremes();
        let digits = usize::from(figure.median() < 100.0) * 2;
        let median = format!("{:.digits$} {}", figure.median(), figure.unit);
        let span = format!("{least:.digits$}–{most:.digits$}");
        writeln!(
            out,
            "{:<44} {:<34} {median:>16}  {span:>17}  {:>6.2}",
            figure.condition,
            figure.rival,
            ratio(figure)
        )?;
    }
    Ok(())
}
