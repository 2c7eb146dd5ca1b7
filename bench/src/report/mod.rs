//! What came out, for people and for programs.

pub(crate) mod bars;
pub(crate) mod json;
pub(crate) mod text;

use serde_json::{Map, Value};

use crate::measure::Sample;

/// Contender that the others are set in relation to.
pub(crate) const REFERENCE: &str = "ours-agent";

/// One work, or one part of it.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) work: String,
    /// What its data are: sizes and counts.
    pub(crate) facts: Map<String, Value>,
    pub(crate) rows: Vec<Row>,
    /// Why it was not done at all.
    pub(crate) skipped: Option<String>,
}

/// One contender.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) contender: String,
    pub(crate) samples: Vec<Sample>,
    pub(crate) note: Option<String>,
    pub(crate) skipped: Option<String>,
}

impl Table {
    pub(crate) fn new(work: &str) -> Self {
        Self { work: work.to_owned(), facts: Map::new(), rows: Vec::new(), skipped: None }
    }

    pub(crate) fn skipped(work: &str, reason: String) -> Self {
        Self { skipped: Some(reason), ..Self::new(work) }
    }

    pub(crate) fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    pub(crate) fn row(&self, contender: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.contender == contender)
    }

    /// Times of [`REFERENCE`] that a contender takes.
    pub(crate) fn ratio(&self, row: &Row) -> Option<f64> {
        Some(row.seconds()? / self.row(REFERENCE)?.seconds()?)
    }
}

impl Row {
    pub(crate) fn new(contender: &str) -> Self {
        Self { contender: contender.to_owned(), samples: Vec::new(), note: None, skipped: None }
    }

    pub(crate) fn seconds(&self) -> Option<f64> {
        median(self.samples.iter().map(|sample| sample.seconds))
    }

    /// Least and most seconds.
    pub(crate) fn range(&self) -> Option<(f64, f64)> {
        let seconds = || self.samples.iter().map(|sample| sample.seconds);
        Some((seconds().reduce(f64::min)?, seconds().reduce(f64::max)?))
    }

    pub(crate) fn wire(&self) -> Option<f64> {
        median(self.samples.iter().filter_map(|sample| Some(sample.wire? as f64)))
    }

    /// Highest peak of all runs, in KiB: primary, standby.
    pub(crate) fn memory(&self) -> Option<(u64, u64)> {
        let primary = self.samples.iter().map(|sample| sample.primary_kib).max()?;
        Some((primary, self.samples.iter().map(|sample| sample.standby_kib).max()?))
    }

    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        let values = self.samples.iter().flat_map(|sample| &sample.figures);
        median(values.filter(|figure| figure.0 == name).map(|figure| figure.1))
    }
}

/// The middle value; of an even number, the mean of the two in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (upper + values[middle - 1]) / 2.0 })
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
    }
}
