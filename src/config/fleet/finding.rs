//! What is wrong with a fleet, or worth knowing about it.

use std::fmt;

use serde::Serialize;

use crate::ConfigError;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Some instance would not start, or some work would not be done.
    Error,
    /// It works, but perhaps not as it was meant.
    Warning,
}

/// One thing that is wrong with a fleet, or worth knowing about it.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The instances that it is about; empty if it is about all of them.
    pub instances: Vec<String>,
    /// Key, value, what is wrong and what to do.
    pub mistake: ConfigError,
}

impl Finding {
    pub(crate) fn error(instance: &str, mistake: ConfigError) -> Self {
        Self { severity: Severity::Error, instances: vec![instance.to_owned()], mistake }
    }

    pub(crate) fn warning(instance: &str, mistake: ConfigError) -> Self {
        Self { severity: Severity::Warning, instances: vec![instance.to_owned()], mistake }
    }

    pub(crate) fn about<'a>(mut self, instances: impl IntoIterator<Item = &'a str>) -> Self {
        self.instances = instances.into_iter().map(str::to_owned).collect();
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })?;
        if !self.instances.is_empty() {
            write!(f, " ({})", self.instances.join(", "))?;
        }
        write!(f, ": {}", self.mistake)
    }
}

/// The same said of several instances is said once; errors come first.
pub(crate) fn merged(findings: Vec<Finding>) -> Vec<Finding> {
    let mut merged: Vec<Finding> = Vec::new();
    for finding in findings {
        let same = merged
            .iter_mut()
            .find(|one| one.severity == finding.severity && one.mistake == finding.mistake);
        match same {
            Some(one) => {
                let new = finding.instances.into_iter();
                let new: Vec<_> = new.filter(|name| !one.instances.contains(name)).collect();
                one.instances.extend(new);
            }
            None => merged.push(finding),
        }
    }
    merged.sort_by_key(|finding| finding.severity);
    merged
}
