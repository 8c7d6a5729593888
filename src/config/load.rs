//! Files and environment become one tree; figment's errors become ours.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use figment::{Figment, Source, error::Actual, error::Kind};

use crate::{
    ConfigError,
    config::{Overrides, defaults},
    known, outgoing,
    source::{Layer, Named},
};

/// What environment variables that stand for keys begin with.
const PREFIX: &str = "CHATD_";

/// The files of one instance, in order.
#[derive(Debug)]
pub(crate) struct Files {
    layers: Vec<Layer>,
}

impl Files {
    pub fn read(paths: &[PathBuf]) -> Result<Self, ConfigError> {
        let mut layers = Vec::new();
        for path in paths {
            for file in expand(path)? {
                layers.push(Layer::read(&file)?);
            }
        }
        Ok(Self { layers })
    }

    pub fn parse(texts: &[(&str, &str)]) -> Result<Self, ConfigError> {
        let layers = texts.iter().map(|(name, text)| Layer::parse(Path::new(name), text));
        Ok(Self { layers: layers.collect::<Result<_, _>>()? })
    }

    pub fn of(layers: Vec<Layer>) -> Self {
        Self { layers }
    }

    pub fn into_layers(self) -> Vec<Layer> {
        self.layers
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| layer.file.clone()).collect()
    }

    /// Everything merged: defaults, the proxies of the environment, files, environment, command
    /// line.
    pub fn figment(&self, over: &Overrides, warnings: &mut Vec<String>) -> Figment {
        let mut figment = outgoing::from_environment(defaults(), &over.env);
        for (index, layer) in self.layers.iter().enumerate() {
            figment = figment.merge(Named::from_layer(layer, &self.layers[index + 1..]));
        }
        for (name, text) in &over.env {
            if let Some(key) = key_of_variable(name, warnings) {
                figment = figment.merge(Named::from_variable(name, &key, text));
            }
        }
        for (key, value) in [("worker_app", &over.role), ("worker_name", &over.name)] {
            if let Some(value) = value {
                figment = figment.merge((key, value));
            }
        }
        known::report(&self.layers, warnings);
        figment
    }

    /// Where each value comes from.
    pub fn origins(&self, over: &Overrides) -> Origins {
        let mut origins = Origins::default();
        for (index, layer) in self.layers.iter().enumerate() {
            let source = layer.file.display().to_string();
            let later = &self.layers[index + 1..];
            for (key, line) in &layer.lines {
                let top = key.split('.').next().unwrap_or(key);
                if !later.iter().any(|other| other.values.contains_key(top)) {
                    origins.places.insert(key.clone(), (source.clone(), Some(*line)));
                }
            }
            origins.last_file = Some(source);
        }
        for (name, _) in &over.env {
            if let Some(key) = key_of_variable(name, &mut Vec::new()) {
                origins.places.insert(key, (name.clone(), None));
            }
        }
        origins
    }
}

/// File and line, or the environment variable, of each value by its dotted key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins {
    places: HashMap<String, (String, Option<u64>)>,
    last_file: Option<String>,
}

impl Origins {
    /// Adds file and line to an error that knows its key only: those of the key, or of the
    /// nearest key around it.
    pub fn locate(&self, mut error: ConfigError) -> ConfigError {
        let Some(key) = error.key.clone() else { return error };
        let mut path = key.as_str();
        let place = loop {
            match (self.places.get(path), path.rsplit_once('.')) {
                (Some(place), _) => break Some(place),
                (None, Some((parent, _))) => path = parent,
                (None, None) => break None,
            }
        };
        match place {
            Some((source, line)) if error.source.as_ref().is_none_or(|known| known == source) => {
                error.source = Some(source.clone());
                error.line = error.line.or(*line);
            }
            Some(_) => {}
            None if error.source.is_none() => error.source.clone_from(&self.last_file),
            None => {}
        }
        error
    }
}

/// A file is itself; a folder is every `*.yaml` in it, by name.
fn expand(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |error: std::io::Error| {
        ConfigError::new(format!("this folder cannot be read: {error}")).in_file(path)
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.is_file() && file.extension().is_some_and(|extension| extension == "yaml") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(ConfigError::new("this folder has no file whose name ends in .yaml")
            .in_file(path)
            .remedy("give a file, or a folder with YAML files"));
    }
    files.sort();
    Ok(files)
}

/// The key that a variable stands for. Other variables that begin with `CHATD_` (Kubernetes
/// makes some for a service of that name) are none of ours, unless they look like a slip.
fn key_of_variable(name: &str, warnings: &mut Vec<String>) -> Option<String> {
    let key = name.strip_prefix(PREFIX)?.to_ascii_lowercase().replace("__", ".");
    let top = key.split('.').next().unwrap_or(&key);
    if known::is_known(top) {
        return Some(key);
    }
    if let Some(near) = known::nearest(top) {
        let near = near.to_ascii_uppercase();
        warnings.push(format!(
            "the environment variable {name} stands for no key; did you mean {PREFIX}{near}?"
        ));
    }
    None
}

/// [`explain`] for the value of one top-level key, which figment puts at the wrong end of the path.
pub(crate) fn explain_inner(mut error: figment::Error, key: &str) -> ConfigError {
    if error.path.last().is_some_and(|last| last == key) {
        error.path.rotate_right(1);
    }
    explain(&error)
}

/// figment's error in our words.
pub(crate) fn explain(error: &figment::Error) -> ConfigError {
    let key = error.path.join(".");
    let secret = ["secret", "password", "pepper", "token"].iter().any(|word| key.contains(word));
    let found = |actual: &Actual| if secret { "***".to_owned() } else { show(actual) };
    let mut ours = match &error.kind {
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            ConfigError::at(key, format!("expected {expected}")).found(found(actual))
        }
        Kind::MissingField(field) => {
            let key = if key.is_empty() { field.to_string() } else { format!("{key}.{field}") };
            ConfigError::at(key, "is missing")
        }
        Kind::UnknownVariant(value, expected) => {
            let near = crate::suggest::nearest(value, expected.iter().copied());
            let error = ConfigError::at(key, format!("expected one of {}", expected.join(", ")))
                .found(format!("{value:?}"));
            match near {
                Some(near) => error.remedy(format!("did you mean `{near}`?")),
                None => error,
            }
        }
        Kind::ISizeOutOfRange(value) => {
            ConfigError::at(key, "expected a number in range").found(value)
        }
        Kind::USizeOutOfRange(value) => {
            ConfigError::at(key, "expected a number in range").found(value)
        }
        other => ConfigError::at(key, other.to_string()),
    };
    ours.source = match error.metadata.as_ref().and_then(|metadata| metadata.source.as_ref()) {
        Some(Source::File(file)) => Some(file.display().to_string()),
        Some(Source::Custom(variable)) => Some(variable.clone()),
        _ => None,
    };
    if ours.key.as_deref() == Some("") {
        ours.key = None;
    }
    ours
}

fn show(actual: &Actual) -> String {
    match actual {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Str(value) => format!("{value:?}"),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}
