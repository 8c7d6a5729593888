//! What is wrong with the configuration, said so that an admin can mend it.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    path::PathBuf,
};

/// A mistake in the configuration: where, what was found, what was expected, what to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigError(Box<Mistake>);

/// The parts of a [`ConfigError`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistake {
    /// The file, or the name of the environment variable.
    pub source: Option<String>,
    /// Line in that file, from 1.
    pub line: Option<u64>,
    /// The key, with dots between levels.
    pub key: Option<String>,
    /// The value that was found; `***` for secrets.
    pub value: Option<String>,
    /// What is wrong, or what was expected instead.
    pub problem: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Deref for ConfigError {
    type Target = Mistake;

    fn deref(&self) -> &Mistake {
        &self.0
    }
}

impl DerefMut for ConfigError {
    fn deref_mut(&mut self) -> &mut Mistake {
        &mut self.0
    }
}

impl ConfigError {
    /// An error that is not about one key.
    pub fn new(problem: impl Into<String>) -> Self {
        Self(Box::new(Mistake { problem: problem.into(), ..Mistake::default() }))
    }

    /// An error about `key`.
    pub fn at(key: impl Into<String>, problem: impl Into<String>) -> Self {
        let mut error = Self::new(problem);
        error.key = Some(key.into());
        error
    }

    /// Adds what was found.
    #[must_use]
    pub fn found(mut self, value: impl fmt::Display) -> Self {
        self.value = Some(value.to_string());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Adds the file, if none is known yet.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.source.get_or_insert_with(|| file.into().display().to_string());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(f, "{source}")?;
            if let Some(line) = self.line {
                write!(f, ", line {line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "`{key}`")?;
            if let Some(value) = &self.value {
                write!(f, " is {value}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.problem)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  what to do: {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
