//! The whole configuration of one instance, typed and checked.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use figment::{Figment, providers::Serialized};
use ruma_common::{OwnedServerName, ServerName};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    ConfigError,
    accounts::{Passwords, Registration, Sessions},
    chatd::Chatd,
    database::Database,
    federation::Federation,
    keys::Keys,
    listeners::{Listener, RawListener},
    load::{self, Files, Origins},
    outgoing::Outgoing,
    presence::{Presence, PresenceMode, Profiles},
    rates::RateLimits,
    rooms::Rooms,
    voip::Voip,
    workers::Workers,
};

/// The whole configuration of one instance.
#[derive(Clone, Debug)]
pub struct Config {
    /// `server_name`: the part after the colon of all ids made here. Never changes.
    pub server_name: OwnedServerName,
    /// `public_baseurl`, without a slash at its end.
    pub public_baseurl: Option<String>,
    /// `serve_server_wellknown`: whether `/.well-known/matrix/server` is answered.
    pub serve_server_wellknown: bool,
    /// `extra_well_known_client_content`: members added to `/.well-known/matrix/client`.
    pub extra_well_known_client_content: Map<String, Value>,
    /// Folder of chatd's own files. See [`Chatd::data_dir`].
    pub data_dir: PathBuf,
    /// `signing_key_path`, or its default.
    pub signing_key_path: PathBuf,
    /// `max_upload_size`, for the configurations of reverse proxies. Default 50 MiB.
    pub max_upload_size: u64,
    /// `report_stats`: accepted; nothing is ever sent.
    pub report_stats: bool,
    /// `worker_log_config` or `log_config`: a Python logging configuration.
    pub log_config: Option<PathBuf>,
    /// Where this instance listens: `worker_listeners` of a worker, `listeners` of main.
    pub listeners: Vec<Listener>,
    /// `tls_certificate_path` and `tls_private_key_path`, for listeners with `tls: true`.
    pub tls: Option<Tls>,
    /// `database`.
    pub database: Database,
    /// `presence`.
    pub presence: Presence,
    /// Who may register.
    pub registration: Registration,
    /// How passwords are checked.
    pub passwords: Passwords,
    /// How long logins last.
    pub sessions: Sessions,
    /// `rc_*`.
    pub rates: RateLimits,
    /// How rooms are made and found.
    pub rooms: Rooms,
    /// What profiles tell to whom.
    pub profiles: Profiles,
    /// Old signing keys, and who is asked for those of others.
    pub keys: Keys,
    /// `turn_*`.
    pub voip: Voip,
    /// How other servers are found, trusted and asked.
    pub federation: Federation,
    /// The proxy through which they are asked, if any.
    pub outgoing: Outgoing,
    /// Limits of caches and queues.
    pub chatd: Chatd,
    /// Which instance does what; for [`crate::assignment`] and the bus.
    pub workers: Workers,
    /// What an admin should know: keys that have no effect, deprecated forms.
    pub warnings: Vec<String>,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
    pub(crate) origins: Origins,
}

/// Certificate and key of TLS listeners (PEM).
#[derive(Clone, Debug)]
pub struct Tls {
    /// `tls_certificate_path`.
    pub certificate_path: PathBuf,
    /// `tls_private_key_path`.
    pub private_key_path: PathBuf,
}

/// What the command line and the environment say over the files.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--role`: `worker_app`.
    pub role: Option<String>,
    /// `--name`: `worker_name`.
    pub name: Option<String>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// Environment variables; only those that begin with `CHATD_` and name a key count, and those
    /// that name a proxy.
    pub env: Vec<(String, String)>,
}

impl Overrides {
    /// Nothing but the environment of this process.
    pub fn from_env() -> Self {
        // Names and values that are not UTF-8 cannot be ours.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self { env: std::env::vars_os().filter_map(text).collect(), ..Self::default() }
    }
}

impl Config {
    /// Reads `paths` in order (a folder is every `*.yaml` in it, sorted by name), then what is
    /// over them. A later file replaces whole top-level keys of an earlier one, as in Synapse.
    pub fn load(paths: &[PathBuf], over: &Overrides) -> Result<Self, ConfigError> {
        let files = Files::read(paths)?;
        Self::assemble(files, over)
    }

    /// As [`Config::load`], from texts instead of files. For tests and tools.
    pub fn from_texts(texts: &[(&str, &str)], over: &Overrides) -> Result<Self, ConfigError> {
        let files = Files::parse(texts)?;
        Self::assemble(files, over)
    }

    pub(crate) fn assemble(files: Files, over: &Overrides) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let figment = files.figment(over, &mut warnings);
        let origins = files.origins(over);
        let reader = Reader { figment: &figment, files: &files };
        match reader.config(over, warnings) {
            Ok(config) => Ok(Self { origins, ..config }),
            Err(error) => Err(origins.locate(error)),
        }
    }

    /// Name of this instance: `main`, or `worker_name`.
    pub fn instance_name(&self) -> &str {
        self.workers.instance_name()
    }
}

/// The few keys that stand alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Plain {
    public_baseurl: Option<String>,
    serve_server_wellknown: bool,
    extra_well_known_client_content: Map<String, Value>,
    signing_key_path: Option<PathBuf>,
    report_stats: bool,
    max_upload_size: MaxUploadSize,
    log_config: Option<PathBuf>,
    worker_log_config: Option<PathBuf>,
    tls_certificate_path: Option<PathBuf>,
    tls_private_key_path: Option<PathBuf>,
    use_presence: Option<bool>,
}

/// A size with Synapse's default.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct MaxUploadSize {
    #[serde(deserialize_with = "crate::units::size")]
    bytes: u64,
}

impl Default for MaxUploadSize {
    fn default() -> Self {
        Self { bytes: 50 << 20 }
    }
}

/// Takes the sections out of the merged tree, one after the other.
struct Reader<'a> {
    figment: &'a Figment,
    files: &'a Files,
}

impl Reader<'_> {
    fn section<'de, T: Deserialize<'de>>(&self) -> Result<T, ConfigError> {
        self.figment.extract().map_err(|error| load::explain(&error))
    }

    fn at<'de, T: Deserialize<'de> + Default>(&self, key: &str) -> Result<T, ConfigError> {
        if !self.figment.contains(key) {
            return Ok(T::default());
        }
        self.figment.extract_inner(key).map_err(|error| load::explain_inner(error, key))
    }

    fn config(&self, over: &Overrides, mut warnings: Vec<String>) -> Result<Config, ConfigError> {
        crate::check::check_guards(self.figment)?;
        let plain: Plain = self.section()?;
        let workers: Workers = self.workers(&mut warnings)?;
        let server_name = self.server_name()?;
        let chatd: Chatd = self.at("chatd")?;
        let data_dir = over
            .data_dir
            .clone()
            .or_else(|| chatd.data_dir.clone())
            .unwrap_or_else(|| PathBuf::from("chatd-data"));
        let listeners = self.listeners(workers.is_main(), &mut warnings)?;
        let mut presence: Presence = self.at("presence")?;
        if plain.use_presence == Some(false) && !self.figment.contains("presence.enabled") {
            presence.enabled = PresenceMode::Disabled;
        }
        let log_config = if workers.is_main() { plain.log_config } else { plain.worker_log_config };
        let signing_key_path = plain
            .signing_key_path
            .unwrap_or_else(|| self.default_signing_key(&server_name, &data_dir));
        let mut config = Config {
            public_baseurl: plain.public_baseurl.map(|url| url.trim_end_matches('/').to_owned()),
            serve_server_wellknown: plain.serve_server_wellknown,
            extra_well_known_client_content: plain.extra_well_known_client_content,
            signing_key_path,
            report_stats: plain.report_stats,
            max_upload_size: plain.max_upload_size.bytes,
            log_config,
            listeners,
            tls: tls(plain.tls_certificate_path, plain.tls_private_key_path)?,
            database: crate::database::read(self.figment, &mut warnings)?,
            presence,
            registration: self.section()?,
            passwords: self.section()?,
            sessions: self.section()?,
            rates: self.section()?,
            rooms: self.section()?,
            profiles: self.section()?,
            keys: self.section()?,
            voip: self.section()?,
            federation: self.section()?,
            outgoing: self.section()?,
            chatd,
            workers,
            warnings,
            files: self.files.paths(),
            origins: Origins::default(),
            data_dir,
            server_name,
        };
        crate::secrets::resolve(&mut config)?;
        crate::check::check(&mut config)?;
        Ok(config)
    }

    fn server_name(&self) -> Result<OwnedServerName, ConfigError> {
        #[derive(Deserialize)]
        struct Name {
            server_name: Option<String>,
        }
        let name: Name = self.section()?;
        let Some(name) = name.server_name else {
            return Err(ConfigError::at("server_name", "is missing").remedy(
                "add `server_name: example.org`, the part after the colon of your users' ids; \
                 `chatd generate-config --server-name example.org` writes a whole file",
            ));
        };
        ServerName::parse(&name).map_err(|_| {
            ConfigError::at("server_name", "expected a host name, with a port if need be")
                .found(format!("{name:?}"))
                .remedy("write example.org, without https:// and without a path")
        })
    }

    fn workers(&self, warnings: &mut Vec<String>) -> Result<Workers, ConfigError> {
        let mut workers: Workers = self.section()?;
        if workers.name.is_none() {
            workers.name = workers.app.clone();
        }
        workers.adopt_replication_host(warnings)?;
        Ok(workers)
    }

    fn listeners(
        &self,
        main: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Listener>, ConfigError> {
        let key = if main { "listeners" } else { "worker_listeners" };
        let raw: Vec<RawListener> = self.at(key)?;
        let mut listeners = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            listeners.extend(raw.check(&format!("{key}.{index}"), warnings)?);
        }
        Ok(listeners)
    }

    /// Synapse's default is beside the first file; a file there is found. Otherwise the key
    /// belongs into the data directory.
    fn default_signing_key(&self, server_name: &ServerName, data_dir: &Path) -> PathBuf {
        let name = format!("{server_name}.signing.key");
        let beside = self.files.paths().first().and_then(|file| Some(file.parent()?.join(&name)));
        beside.filter(|path| path.exists()).unwrap_or_else(|| data_dir.join(name))
    }
}

fn tls(
    certificate: Option<PathBuf>,
    private_key: Option<PathBuf>,
) -> Result<Option<Tls>, ConfigError> {
    match (certificate, private_key) {
        (Some(certificate_path), Some(private_key_path)) => {
            Ok(Some(Tls { certificate_path, private_key_path }))
        }
        (None, None) => Ok(None),
        (Some(_), None) => Err(ConfigError::at(
            "tls_private_key_path",
            "is missing, although tls_certificate_path is there",
        )),
        (None, Some(_)) => Err(ConfigError::at(
            "tls_certificate_path",
            "is missing, although tls_private_key_path is there",
        )),
    }
}

/// The lowest layer: defaults of keys that may be given in halves.
pub(crate) fn defaults() -> Figment {
    Figment::from(Serialized::defaults(RateLimits::default()))
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.instance_name(), self.server_name)
    }
}
