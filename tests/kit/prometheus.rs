//! The text format of Prometheus, read as strictly as a scraper would.

use std::collections::{BTreeMap, BTreeSet};

/// One line of a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// With `_bucket`, `_sum` or `_count` if it is of a histogram.
    pub name: String,
    /// Labels with their values.
    pub labels: BTreeMap<String, String>,
    /// The figure.
    pub value: f64,
}

/// Everything that is told of one metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Family {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it means.
    pub help: String,
    /// Its lines.
    pub samples: Vec<Sample>,
}

/// A page, by metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// By name.
    pub families: BTreeMap<String, Family>,
}

impl Page {
    /// Reads a page; the error is a sentence about the line that is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut page, mut seen) = (Self::default(), BTreeSet::new());
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let wrong = |why: &str| format!("{why}: {line}");
            if let Some(rest) = line.strip_prefix("# ") {
                let (what, rest) = rest.split_once(' ').ok_or_else(|| wrong("a short comment"))?;
                let (name, text) = rest.split_once(' ').ok_or_else(|| wrong("a short comment"))?;
                let family = page.families.entry(name.to_owned()).or_default();
                match what {
                    "HELP" if family.help.is_empty() => text.clone_into(&mut family.help),
                    "TYPE" if family.kind.is_empty() && family.samples.is_empty() => {
                        text.clone_into(&mut family.kind);
                    }
                    _ => return Err(wrong("a comment that is repeated, late or unknown")),
                }
                continue;
            }
            let sample = sample(line).ok_or_else(|| wrong("not a sample"))?;
            if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                return Err(wrong("a series that is told twice"));
            }
            let family = page.family_of(&sample).ok_or_else(|| wrong("a sample without a type"))?;
            family.samples.push(sample);
        }
        Ok(page)
    }

    fn family_of(&mut self, sample: &Sample) -> Option<&mut Family> {
        let stems = ["_bucket", "_sum", "_count"].map(|end| sample.name.strip_suffix(end));
        let of_histogram = stems
            .into_iter()
            .flatten()
            .find(|stem| self.families.get(*stem).is_some_and(|family| family.kind == "histogram"));
        let name = of_histogram.unwrap_or(&sample.name).to_owned();
        self.families.get_mut(&name).filter(|family| !family.kind.is_empty())
    }

    /// The sum of all series of `name` that have these labels; `None` if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let all = self.families.values().flat_map(|family| &family.samples);
        let fits = |sample: &&Sample| {
            let has = |(label, value): &(&str, &str)| {
                sample.labels.get(*label).is_some_and(|found| found == value)
            };
            sample.name == name && labels.iter().all(has)
        };
        all.filter(fits).map(|sample| sample.value).reduce(|sum, value| sum + value)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)))?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let value = rest.trim().parse().ok()?;
    (!name.is_empty()).then(|| Sample { name: name.to_owned(), labels, value })
}

/// The text up to the closing quote, and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read() {
        let page = "# HELP a_total how many\n# TYPE a_total counter\na_total{x=\"1,\\\"}\",y=\"\"} 3\n\
                    a_total 4\n\n# TYPE t histogram\n# HELP t time\nt_bucket{le=\"+Inf\"} 2\nt_sum 0.5\nt_count 2\n";
        let page = Page::parse(page).unwrap();
        assert_eq!(page.sum("a_total", &[]), Some(7.0));
        assert_eq!(page.sum("a_total", &[("x", "1,\"}")]), Some(3.0));
        assert_eq!(page.sum("a_total", &[("x", "2")]), None);
        assert_eq!(page.families["t"].samples.len(), 3);
        assert_eq!(page.families["t"].help, "time");
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (page, why) in [
            ("a 1", "without a type"),
            ("# TYPE a gauge\na 1\na 2", "told twice"),
            ("# TYPE a gauge\na one", "not a sample"),
            ("# TYPE a gauge\na{b=\"c} 1", "not a sample"),
            ("# TYPE a gauge\na 1\n# TYPE a gauge", "repeated"),
        ] {
            let error = Page::parse(page).unwrap_err();
            assert!(error.contains(why), "{page}: {error}");
        }
    }
}
