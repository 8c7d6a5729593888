//! One YAML file as a tree that remembers its lines, and the environment as another tree.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use figment::{
    Metadata, Profile, Provider, Source,
    value::{Dict, Map, Value as FigmentValue},
};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::ConfigError;

/// One file: its top-level keys, and the line of each value by its dotted key.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub file: PathBuf,
    pub values: serde_json::Map<String, Value>,
    pub lines: HashMap<String, u64>,
}

impl Layer {
    /// Reads and parses `file`. A key that stands twice is an error, since one of the two values
    /// would silently not count.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(file).map_err(|error| {
            ConfigError::new(format!("cannot be read: {error}"))
                .in_file(file)
                .remedy("check the path and that the user who runs chatd may read the file")
        })?;
        Self::parse(file, &text)
    }

    /// The `worker_name` in it, or its `worker_app`, or the name of the file.
    pub fn name(&self) -> String {
        let text = |key| self.values.get(key).and_then(Value::as_str).map(str::to_owned);
        let named = text("worker_name").or_else(|| text("worker_app"));
        named.unwrap_or_else(|| self.file.display().to_string())
    }

    /// Parses the text of `file`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let options = serde_saphyr::options! {
            with_snippet: false,
            leading_zero_numbers_as_strings: true,
            reject_unsupported_tags: false
        };
        let root: Option<Spanned<Node>> = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| invalid_yaml(file, &error))?;
        let mut lines = HashMap::new();
        let value = root.map_or(Value::Null, |node| node.value.into_value("", &mut lines));
        let values = match value {
            Value::Object(values) => values,
            Value::Null => serde_json::Map::new(),
            _ => {
                return Err(
                    ConfigError::new("must be a map of keys at its top level").in_file(file)
                );
            }
        };
        Ok(Self { file: file.to_owned(), values, lines })
    }
}

fn invalid_yaml(file: &Path, error: &serde_saphyr::Error) -> ConfigError {
    let problem = match error {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` stands here a second time; keep one of the two")
        }
        other => format!("is not valid YAML: {other}"),
    };
    let mut ours = ConfigError::new(problem).in_file(file);
    ours.line = error.location().map(|at| at.line());
    ours
}

/// YAML, with the position of each value.
#[derive(Clone)]
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(String, Spanned<Node>)>),
}

impl Node {
    /// The plain value. `null` in a map means that the key is absent, as Synapse reads most keys.
    fn into_value(self, path: &str, lines: &mut HashMap<String, u64>) -> Value {
        match self {
            Self::Scalar(value) => value,
            Self::List(items) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| note(item, join(path, &index.to_string()), lines))
                .collect(),
            Self::Map(entries) => entries
                .into_iter()
                .map(|(key, item)| {
                    let value = note(item, join(path, &key), lines);
                    (key, value)
                })
                .filter(|(_, value)| !value.is_null())
                .collect(),
        }
    }
}

fn note(item: Spanned<Node>, path: String, lines: &mut HashMap<String, u64>) -> Value {
    let line = item.referenced.line();
    let value = item.value.into_value(&path, lines);
    lines.insert(path, line);
    value
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> de::Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

/// Values with the name of where they come from, for figment.
pub(crate) struct Named {
    name: &'static str,
    source: Source,
    values: Dict,
}

impl Named {
    /// Those keys of a file that no later file gives again: Synapse's rule for several files is
    /// that a later one replaces whole top-level keys.
    pub fn from_layer(layer: &Layer, later: &[Layer]) -> Self {
        let kept: serde_json::Map<String, Value> = layer
            .values
            .iter()
            .filter(|(key, _)| !later.iter().any(|other| other.values.contains_key(*key)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let values = match FigmentValue::serialize(kept) {
            Ok(FigmentValue::Dict(_, dict)) => dict,
            _ => Dict::new(),
        };
        Self { name: "file", source: Source::File(layer.file.clone()), values }
    }

    /// What an environment variable says that is none of ours.
    pub fn from_environment(name: &str, values: Dict) -> Self {
        Self { name: "environment", source: Source::Custom(name.to_owned()), values }
    }

    /// One environment variable: `CHATD_DATABASE__ARGS__HOST` is `database.args.host`.
    pub fn from_variable(name: &str, key: &str, text: &str) -> Self {
        let nested = figment::util::nest(key, variable_value(text));
        let values = match nested {
            FigmentValue::Dict(_, dict) => dict,
            _ => Dict::new(),
        };
        Self { name: "environment", source: Source::Custom(name.to_owned()), values }
    }
}

impl Provider for Named {
    fn metadata(&self) -> Metadata {
        Metadata::from(self.name, self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// Lists and maps are written `[a, b]` and `{a=1}`; a number is one only if it is written the
/// usual way, so that a password `007` stays what it is.
fn variable_value(text: &str) -> FigmentValue {
    let structured = text.starts_with(['[', '{', '"']);
    let plain = text == "true"
        || text == "false"
        || text.parse::<i64>().is_ok_and(|number| number.to_string() == text)
        || text.parse::<f64>().is_ok_and(|number| number.to_string() == text);
    if structured || plain {
        match text.parse() {
            Ok(value) => return value,
            Err(never) => match never {},
        }
    }
    FigmentValue::from(text)
}
