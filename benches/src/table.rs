//! What a bench measured, as one Markdown table: what, ours, peer, ratio, target, met.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

/// A line of the table.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Our figure, with its unit.
    pub ours: String,
    /// The other's figure, with its name and unit; empty where there is none to compare with.
    pub peer: String,
    /// Ours by the other's.
    pub ratio: Option<f64>,
    /// What is wanted, in words; empty where nothing is.
    pub target: String,
    /// Whether that was reached.
    pub met: Option<bool>,
}

impl Row {
    /// A line without anything to compare with and without a target.
    pub fn new(what: impl Into<String>, ours: impl Into<String>) -> Self {
        let (what, ours) = (what.into(), ours.into());
        Self { what, ours, peer: String::new(), ratio: None, target: String::new(), met: None }
    }

    /// Whom it is compared with.
    #[must_use]
    pub fn peer(mut self, peer: impl Into<String>, ratio: f64) -> Self {
        self.peer = peer.into();
        self.ratio = Some(ratio);
        self
    }

    /// What is wanted, and whether that was reached.
    #[must_use]
    pub fn target(mut self, target: impl Into<String>, met: bool) -> Self {
        self.target = target.into();
        self.met = Some(met);
        self
    }
}

/// Makes the measurements that are asked for, or all where none is, in their order: shows the lines of each when it is made,
/// and prints the table at the end.
pub async fn print(all: &[&str], only: &[String], mut measure: impl AsyncFnMut(&str) -> Vec<Row>) {
    let mut rows = Vec::new();
    for name in all.iter().filter(|name| only.is_empty() || only.iter().any(|only| only == **name)) {
        eprintln!("━━ {name}");
        let measured = measure(name).await;
        for row in &measured {
            eprintln!("{}: {} {}", row.what, row.ours, row.peer);
        }
        rows.extend(measured);
    }
    // A reader that went away is no failure.
    drop(io::stdout().write_all(markdown(&rows).as_bytes()));
}

fn markdown(rows: &[Row]) -> String {
    let mut text = "| what | ours | peer | ratio | target | met |\n|---|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let ratio = row.ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default();
        let met = row.met.map_or("", |met| if met { "yes" } else { "no" });
        let (what, ours, peer, target) = (&row.what, &row.ours, &row.peer, &row.target);
        writeln!(text, "| {what} | {ours} | {peer} | {ratio} | {target} | {met} |").expect("memory takes it");
    }
    text
}

/// The value in the middle; between the two in the middle, where there are two.
///
/// # Panics
/// Without any value.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which a part of all values lies, interpolated between the nearest two.
///
/// # Panics
/// Without any value.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index"
)]
pub fn quantile(values: &[f64], part: f64) -> f64 {
    assert!(!values.is_empty(), "there is no value");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = part.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_row() {
        let rows = [
            Row::new("plain", "5 ms"),
            Row::new("compared", "5 ms").peer("10 ms (other)", 0.5).target("≤ 1 ×", true),
        ];
        let text = markdown(&rows);
        assert_eq!(text.lines().count(), 4);
        assert!(text.ends_with("| compared | 5 ms | 10 ms (other) | 0.500 | ≤ 1 × | yes |\n"), "{text}");
    }

    #[test]
    fn quantiles_lie_between_the_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 1.0), 3.0);
    }
}
