//! One line per number.

use std::time::Duration;

/// `what  value unit  [limit]`.
pub(crate) fn line(what: &str, value: f64, unit: &str, limit: Option<f64>) {
    let verdict = match limit {
        None => String::new(),
        Some(limit) if value <= limit => format!("limit {limit} {unit}"),
        Some(limit) => format!("over limit {limit} {unit}"),
    };
    println!("{what:<58} {value:>10.3} {unit:<8} {verdict}");
}

/// Something said beside the numbers.
pub(crate) fn note(text: &str) {
    println!("  {text}");
}

/// The value below which `share` of the sample lies. The sample must not be empty.
pub(crate) fn quantile(sample: &[f64], share: f64) -> f64 {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len());
    sorted[at - 1]
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn p50(sample: &[f64]) -> f64 {
    quantile(sample, 0.5)
}

pub(crate) fn p99(sample: &[f64]) -> f64 {
    quantile(sample, 0.99)
}
