//! Where this process logs: what `log_config` says, or standard error.

mod file;
mod line;

use std::io::{self, IsTerminal};

use chatd_config::{Config, ConfigError, LogConfig, LogFormat, LogLevel, LogOutput, LogSink};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer, Registry, filter::Targets, fmt, fmt::writer::BoxMakeWriter, prelude::*,
};

use file::LogFile;

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging. What `log_config` asks for that chatd cannot do is logged as a warning.
pub fn start(config: &Config) -> Result<(), ConfigError> {
    let (layers, warnings) = match &config.log_config {
        Some(file) => from_file(&LogConfig::read(file)?)?,
        None => (vec![to_stderr()], Vec::new()),
    };
    let started = tracing_subscriber::registry().with(layers).try_init();
    started.map_err(|error| ConfigError::new(format!("logging cannot be started: {error}")))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// Whether `log_config` could be followed; opens nothing.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    config.log_config.as_deref().map_or(Ok(()), |file| LogConfig::read(file).map(drop))
}

/// Libraries that tell of single events, statements and connections, and from which level on
/// they are heard.
const TALKATIVE: &[(&str, LevelFilter)] = &[
    ("ruma", LevelFilter::WARN),
    ("tokio_postgres", LevelFilter::WARN),
    // A warning for each connection when the database ends; our pool tells it once.
    ("deadpool", LevelFilter::ERROR),
];

/// A filter with this level for everything; talkative libraries are less so at `info`.
fn everything_at(level: LevelFilter) -> Targets {
    let all = Targets::new().with_default(level);
    if level != LevelFilter::INFO {
        return all;
    }
    TALKATIVE.iter().fold(all, |filter, (prefix, level)| filter.with_target(*prefix, *level))
}

/// Without `log_config`: `info`, or what `RUST_LOG` says, on standard error.
fn to_stderr() -> BoxedLayer {
    let targets = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let filter = targets.unwrap_or_else(|| everything_at(LevelFilter::INFO));
    fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_filter(filter)
        .boxed()
}

fn from_file(log: &LogConfig) -> Result<(Vec<BoxedLayer>, Vec<String>), ConfigError> {
    let layers = log.sinks.iter().map(layer).collect::<Result<_, _>>()?;
    Ok((layers, log.warnings.clone()))
}

fn layer(sink: &LogSink) -> Result<BoxedLayer, ConfigError> {
    let writer = match &sink.output {
        LogOutput::Stderr => BoxMakeWriter::new(io::stderr),
        LogOutput::Stdout => BoxMakeWriter::new(io::stdout),
        LogOutput::File { path, rotation, keep } => {
            let file = LogFile::open(path, *rotation, *keep).map_err(|error| {
                ConfigError::new(format!("the log file cannot be opened: {error}")).in_file(path)
            })?;
            BoxMakeWriter::new(file)
        }
    };
    let all = everything_at(filter_of(sink.default));
    let filter = sink
        .rules
        .iter()
        .fold(all, |filter, (prefix, level)| filter.with_target(prefix, filter_of(*level)));
    let layer = fmt::layer().with_writer(writer).with_ansi(false);
    Ok(match &sink.format {
        LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Template(template) => {
            layer.event_format(line::Template::parse(template)).with_filter(filter).boxed()
        }
    })
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Off => LevelFilter::OFF,
    }
}
