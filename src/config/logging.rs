//! `log_config`: Python's logging configuration, as far as it can mean something here.
//!
//! Loggers are hierarchies of dots there and module paths here; [`TARGETS`] says which parts of
//! chatd do what a logger of Synapse is about. Buffering handlers are followed to their target:
//! chatd writes each line at once.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{ConfigError, source::Layer};

/// Where log lines go and which ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogConfig {
    /// One for each handler that a logger uses.
    pub sinks: Vec<LogSink>,
    /// What could not be followed to the letter.
    pub warnings: Vec<String>,
}

/// One place that log lines go to.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSink {
    /// Where.
    pub output: LogOutput,
    /// How a line looks.
    pub format: LogFormat,
    /// Level of everything that no rule names.
    pub default: LogLevel,
    /// Level by prefix of the module path; the longest prefix counts.
    pub rules: BTreeMap<String, LogLevel>,
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file.
    File {
        /// Where.
        path: PathBuf,
        /// When another file is begun.
        rotation: Rotation,
        /// How many old files are kept; 0 keeps all.
        keep: usize,
    },
}

/// When a log file is put aside and a new one begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Never. If somebody moves the file away, it is made again.
    Never,
    /// Before it grows over this many bytes.
    Size(u64),
    /// After this many seconds.
    Every(u64),
    /// At midnight (UTC) every so many days.
    Midnight(u64),
}

/// How a line looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A template of Python's `%(name)s` places.
    Template(String),
    /// One JSON object a line.
    Json,
}

/// Least serious level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the levels are their names")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Off,
}

/// What Synapse's loggers are called here. A logger that is not listed takes the level of the
/// listed one above it.
const TARGETS: &[(&str, &[&str])] = &[
    ("synapse", &["chatd"]),
    ("synapse.access", &["chatd::access"]),
    ("synapse.app", &["chatd::"]),
    ("synapse.config", &["chatd_config"]),
    ("synapse.crypto", &["chatd_servers"]),
    ("synapse.events", &["chatd_rooms"]),
    ("synapse.federation", &["chatd_federation", "chatd_api_federation"]),
    ("synapse.handlers", &["chatd_rooms", "chatd_users", "chatd_sync"]),
    ("synapse.handlers.sync", &["chatd_sync"]),
    ("synapse.http", &["chatd_http", "chatd_servers"]),
    ("synapse.media", &["chatd_media"]),
    ("synapse.metrics", &["chatd_http::metrics"]),
    ("synapse.push", &["chatd_delivery"]),
    ("synapse.replication", &["chatd_streams"]),
    ("synapse.replication.tcp", &["chatd_streams::bus"]),
    ("synapse.rest", &["chatd_api_client", "chatd_api_admin"]),
    ("synapse.state", &["chatd_rooms"]),
    ("synapse.storage", &["chatd_storage"]),
    ("synapse.storage.SQL", &["chatd_storage::statement"]),
    ("psycopg2", &["tokio_postgres"]),
    ("twisted", &["hyper", "h2"]),
];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    formatters: BTreeMap<String, Formatter>,
    handlers: BTreeMap<String, Handler>,
    loggers: BTreeMap<String, Logger>,
    root: Logger,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Formatter {
    format: Option<String>,
    class: Option<String>,
    #[serde(rename = "()")]
    factory: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Handler {
    class: String,
    formatter: Option<String>,
    level: Option<Value>,
    stream: Option<String>,
    filename: Option<PathBuf>,
    max_bytes: u64,
    backup_count: usize,
    when: Option<String>,
    interval: Option<u64>,
    target: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Logger {
    level: Option<Value>,
    handlers: Vec<String>,
    propagate: Option<bool>,
}

impl LogConfig {
    /// Reads the file that `log_config` or `worker_log_config` names.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(file).map_err(|error| {
            ConfigError::at("log_config", format!("the file cannot be read: {error}"))
                .found(file.display())
                .remedy(
                    "make the file, or remove the key: without it, chatd logs to standard error",
                )
        })?;
        Self::parse(file, &text)
    }

    /// Parses the text of `file`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let values = Layer::parse(file, text)?.values;
        let document: Document =
            serde_json::from_value(Value::Object(values)).map_err(|error| {
                ConfigError::new(format!("is no Python logging configuration: {error}"))
                    .in_file(file)
            })?;
        document.resolve().map_err(|error| error.in_file(file))
    }
}

impl Document {
    fn resolve(&self) -> Result<LogConfig, ConfigError> {
        let mut config = LogConfig::default();
        for (name, handler) in &self.handlers {
            if handler.target.is_some() {
                continue;
            }
            let Some(output) = handler.output(name, &mut config.warnings)? else { continue };
            let (default, rules) = self.levels(name)?;
            if default == LogLevel::Off && rules.values().all(|level| *level == LogLevel::Off) {
                continue;
            }
            let floor = level(handler.level.as_ref())?.unwrap_or(LogLevel::Trace);
            config.sinks.push(LogSink {
                output,
                format: self.format_of(handler),
                default: default.max(floor),
                rules: rules
                    .into_iter()
                    .map(|(prefix, level)| (prefix, level.max(floor)))
                    .collect(),
            });
        }
        Ok(config)
    }

    /// Whether one of `used` is `wanted` or a buffer in front of it.
    fn leads_to(&self, used: &[String], wanted: &str) -> bool {
        used.iter().any(|name| {
            let target = self.handlers.get(name).and_then(|handler| handler.target.as_deref());
            name == wanted || target == Some(wanted)
        })
    }

    /// What reaches the handler `name`: the level of the rest, and of single module paths.
    fn levels(&self, name: &str) -> Result<(LogLevel, BTreeMap<String, LogLevel>), ConfigError> {
        let root_level = level(self.root.level.as_ref())?.unwrap_or(LogLevel::Warn);
        let from_root = self.leads_to(&self.root.handlers, name);
        let default = if from_root { root_level } else { LogLevel::Off };
        let mut rules = BTreeMap::new();
        // A logger comes before those below it, so that the more special one wins.
        for (logger_name, logger) in &self.loggers {
            let here = self.leads_to(&logger.handlers, name);
            let reaches = here || (from_root && logger.propagate.unwrap_or(true));
            let own = level(logger.level.as_ref())?.unwrap_or(root_level);
            for target in targets(logger_name) {
                rules.insert(target, if reaches { own } else { LogLevel::Off });
            }
        }
        Ok((default, rules))
    }

    fn format_of(&self, handler: &Handler) -> LogFormat {
        let formatter = handler.formatter.as_ref().and_then(|name| self.formatters.get(name));
        let class = formatter.and_then(|one| one.class.as_ref().or(one.factory.as_ref()));
        match (class, formatter.and_then(|one| one.format.as_ref())) {
            (Some(class), _) if class.contains("Json") => LogFormat::Json,
            (_, Some(template)) => LogFormat::Template(template.clone()),
            (_, None) => LogFormat::Template("%(message)s".to_owned()),
        }
    }
}

/// The module paths that a logger stands for; a name of ours stands for itself.
fn targets(logger: &str) -> Vec<String> {
    match TARGETS.iter().find(|(name, _)| *name == logger) {
        Some((_, targets)) => targets.iter().map(ToString::to_string).collect(),
        None if logger.starts_with("synapse.") => Vec::new(),
        None => vec![logger.replace('.', "::")],
    }
}

impl Handler {
    fn output(
        &self,
        name: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Option<LogOutput>, ConfigError> {
        let class = self.class.rsplit('.').next().unwrap_or_default();
        let rotation = match class {
            "NullHandler" => return Ok(None),
            "StreamHandler" => return Ok(Some(self.stream())),
            "FileHandler" | "WatchedFileHandler" => Rotation::Never,
            "RotatingFileHandler" if self.max_bytes == 0 => Rotation::Never,
            "RotatingFileHandler" => Rotation::Size(self.max_bytes),
            "TimedRotatingFileHandler" => self.timed(name)?,
            _ => {
                warnings.push(format!(
                    "log handler `{name}`: chatd has no {}; its lines go to standard error",
                    self.class
                ));
                return Ok(Some(LogOutput::Stderr));
            }
        };
        let Some(path) = self.filename.clone() else {
            return Err(ConfigError::at(format!("handlers.{name}.filename"), "is missing"));
        };
        Ok(Some(LogOutput::File { path, rotation, keep: self.backup_count }))
    }

    fn stream(&self) -> LogOutput {
        match self.stream.as_deref() {
            Some("ext://sys.stdout") => LogOutput::Stdout,
            _ => LogOutput::Stderr,
        }
    }

    fn timed(&self, name: &str) -> Result<Rotation, ConfigError> {
        let times = self.interval.unwrap_or(1).max(1);
        let when = self.when.as_deref().unwrap_or("H").to_ascii_uppercase();
        let seconds = match when.as_str() {
            "S" => 1,
            "M" => 60,
            "H" => 3_600,
            "D" => 86_400,
            "MIDNIGHT" => return Ok(Rotation::Midnight(times)),
            weekday if weekday.len() == 2 && weekday.starts_with('W') => {
                return Ok(Rotation::Midnight(7));
            }
            other => {
                return Err(ConfigError::at(
                    format!("handlers.{name}.when"),
                    "expected S, M, H, D, W0 to W6 or midnight",
                )
                .found(format!("{other:?}")));
            }
        };
        Ok(Rotation::Every(seconds * times))
    }
}

fn level(value: Option<&Value>) -> Result<Option<LogLevel>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    let level = match value.as_str().map(str::to_ascii_uppercase).as_deref() {
        Some("CRITICAL" | "FATAL" | "ERROR") => Some(LogLevel::Error),
        Some("WARN" | "WARNING") => Some(LogLevel::Warn),
        Some("INFO") => Some(LogLevel::Info),
        Some("DEBUG") => Some(LogLevel::Debug),
        Some("NOTSET") => Some(LogLevel::Trace),
        Some(_) => None,
        None => value.as_u64().map(|number| match number {
            40.. => LogLevel::Error,
            30.. => LogLevel::Warn,
            20.. => LogLevel::Info,
            10.. => LogLevel::Debug,
            _ => LogLevel::Trace,
        }),
    };
    match level {
        Some(level) => Ok(Some(level)),
        None => Err(ConfigError::at("level", "expected DEBUG, INFO, WARNING, ERROR or CRITICAL")
            .found(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffered_file_of_a_container_is_followed() {
        let text = "
version: 1
formatters:
  precise: { format: '%(asctime)s - %(name)s - %(levelname)s - %(message)s' }
handlers:
  file:
    class: logging.handlers.TimedRotatingFileHandler
    formatter: precise
    filename: /data/log/rooms.log
    when: midnight
    backupCount: 3
    encoding: utf8
  buffer:
    class: synapse.logging.handlers.PeriodicallyFlushingMemoryHandler
    target: file
    capacity: 10
    flushLevel: 30
    period: 5
loggers:
  synapse.metrics: { level: WARN, handlers: [buffer] }
  synapse.util.caches.lrucache: { level: WARN, handlers: [buffer] }
  synapse: { level: INFO, handlers: [buffer] }
  twisted: { level: WARN, handlers: [buffer] }
root: { level: INFO, handlers: [buffer] }
";
        let config = LogConfig::parse(Path::new("log.yaml"), text).unwrap();
        let [sink] = &config.sinks[..] else { panic!("one sink: {config:?}") };
        let path = PathBuf::from("/data/log/rooms.log");
        assert_eq!(sink.output, LogOutput::File { path, rotation: Rotation::Midnight(1), keep: 3 });
        assert_eq!(sink.default, LogLevel::Info);
        let warn = |name: &str| (name.to_owned(), LogLevel::Warn);
        let rules = [
            ("chatd".to_owned(), LogLevel::Info),
            warn("chatd_http::metrics"),
            warn("h2"),
            warn("hyper"),
        ];
        assert_eq!(sink.rules, BTreeMap::from(rules));
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn handlers_levels_and_mistakes() {
        let sinks =
            |text: &str| LogConfig::parse(Path::new("log.yaml"), text).map(|config| config.sinks);
        let size = sinks("{handlers: {f: {class: logging.handlers.RotatingFileHandler, filename: a, maxBytes: 5, backupCount: 2}}, root: {handlers: [f]}}").unwrap();
        assert_eq!(
            size[0].output,
            LogOutput::File { path: "a".into(), rotation: Rotation::Size(5), keep: 2 }
        );
        assert_eq!(size[0].default, LogLevel::Warn, "Python's default");
        let console = sinks("{handlers: {c: {class: logging.StreamHandler, stream: ext://sys.stdout, level: 40, formatter: j}}, formatters: {j: {class: synapse.logging.TerseJsonFormatter}}, root: {level: DEBUG, handlers: [c]}}").unwrap();
        assert_eq!(
            (console[0].output.clone(), console[0].default, console[0].format.clone()),
            (LogOutput::Stdout, LogLevel::Error, LogFormat::Json)
        );
        let apart = sinks("{handlers: {a: {class: logging.StreamHandler}, b: {class: logging.FileHandler, filename: sql}}, loggers: {synapse.storage.SQL: {level: DEBUG, handlers: [b], propagate: false}}, root: {level: INFO, handlers: [a]}}").unwrap();
        assert_eq!(apart[0].rules["chatd_storage::statement"], LogLevel::Off);
        assert_eq!(
            (apart[1].default, apart[1].rules["chatd_storage::statement"]),
            (LogLevel::Off, LogLevel::Debug)
        );
        for (bad, expected) in [
            (
                "root: {level: LOUD, handlers: [a]}\nhandlers: {a: {class: logging.StreamHandler}}",
                "`level` is \"LOUD\"",
            ),
            ("handlers: {a: {class: logging.FileHandler}}", "`handlers.a.filename`: is missing"),
        ] {
            assert!(sinks(bad).unwrap_err().to_string().contains(expected), "{bad}");
        }
    }
}
