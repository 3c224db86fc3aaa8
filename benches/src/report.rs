//! Figures as a table for people or JSON for machines.

use std::io::Write;

use serde_json::json;

/// What one rival reached under one condition: a rate for each round, per second.
pub struct Figure {
    /// The condition, as `95 % leased, 8 allocators`.
    pub condition: String,
    /// Who was measured.
    pub rival: &'static str,
    /// The rate of each round.
    pub rates: Vec<f64>,
}

impl Figure {
    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }

    fn extremes(&self) -> (f64, f64) {
        self.rates
            .iter()
            .fold((f64::MAX, 0.0), |(least, most), rate| {
                (least.min(*rate), most.max(*rate))
            })
    }
}

/// Prints figures; the ratio is to the first rival of the same condition.
pub fn print(figures: &[Figure], json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let rows: Vec<_> = figures
            .iter()
            .map(|figure| {
                let (least, most) = figure.extremes();
                json!({ "condition": figure.condition, "rival": figure.rival, "median": figure.median(), "min": least, "max": most, "rounds": figure.rates.len() })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<28} {:<28} {:>10}  {:>17}  {:>6}",
        "CONDITION", "RIVAL", "MEDIAN /s", "MIN–MAX", "RATIO"
    )?;
    for figure in figures {
        let first = figures
            .iter()
            .find(|other| other.condition == figure.condition);
        let ratio = first.map_or(1.0, |first| figure.median() / first.median());
        let (least, most) = figure.extremes();
        let span = format!("{least:.0}–{most:.0}");
        writeln!(
            out,
            "{:<28} {:<28} {:>10.0}  {span:>17}  {ratio:>6.2}",
            figure.condition,
            figure.rival,
            figure.median()
        )?;
    }
    Ok(())
}
