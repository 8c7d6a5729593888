//! `chatd register-user`: makes an account on a running server, by the shared secret.
//! Takes the arguments of Synapse's `register_new_matrix_user`.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::Duration,
};

use chatd_config::{Bind, Config, Listener, ListenerKind, ResourceName};
use clap::Args;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};

use super::{Failure, Source, note, password, say};

/// Arguments of `register-user`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Local part of the new user's id; asked for if absent
    #[arg(short, long, value_name = "LOCALPART")]
    user: Option<String>,
    /// The password; asked for without echo if absent
    #[arg(short, long)]
    password: Option<String>,
    /// File whose first line is the password, or `-` for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,
    /// Display name of the new user
    #[arg(long, value_name = "NAME")]
    display_name: Option<String>,
    /// Type of the new user, such as `support` or `bot`
    #[arg(short = 't', long = "user_type", visible_alias = "user-type", value_name = "TYPE")]
    user_type: Option<String>,
    /// The new user is an admin of the server
    #[arg(short, long, conflicts_with = "no_admin")]
    admin: bool,
    /// The new user is no admin; nothing is asked
    #[arg(long)]
    no_admin: bool,
    /// Succeed if there is such a user already
    #[arg(long)]
    exists_ok: bool,
    /// The shared secret [default: registration_shared_secret of the configuration]
    #[arg(short = 'k', long, value_name = "SECRET")]
    shared_secret: Option<String>,
    /// Address of the server [default: the first listener of the configuration, or
    /// http://localhost:8008]
    #[arg(value_name = "SERVER_URL")]
    server_url: Option<String>,
}

/// Makes the account, and says its user id.
pub fn execute(source: &Source, arguments: Arguments) -> Result<(), Failure> {
    let (secret, url) = secret_and_url(source, &arguments)?;
    let user = match arguments.user.clone() {
        Some(user) => user,
        None => ask("New user localpart: ")?,
    };
    if user.is_empty() {
        return Err(Failure::usage("the user's name is empty; give it with -u"));
    }
    let password = password::get(arguments.password.clone(), arguments.password_file.as_deref())?;
    let admin = match (arguments.admin, arguments.no_admin) {
        (true, _) => true,
        (false, true) => false,
        (false, false) if io::stdin().is_terminal() => {
            ask("Make admin [no]: ")?.to_lowercase().starts_with('y')
        }
        (false, false) => false,
    };
    let request = Request { user, password, admin, arguments: &arguments };
    match request.send(&url, &secret)? {
        Answer::Made(user_id) => say(format_args!("made {user_id}")),
        Answer::Exists => note("there is such a user already"),
    }
    Ok(())
}

fn ask(prompt: &str) -> Result<String, Failure> {
    let line = password::ask_line(prompt)
        .map_err(|error| Failure::other(format!("the terminal cannot be read: {error}")))?;
    Ok(line.trim().to_owned())
}

/// From the arguments, or else from the configuration.
fn secret_and_url(source: &Source, arguments: &Arguments) -> Result<(String, String), Failure> {
    const DEFAULT_URL: &str = "http://localhost:8008";
    if let Some(secret) = arguments.shared_secret.clone() {
        let url = arguments.server_url.clone().unwrap_or_else(|| DEFAULT_URL.to_owned());
        return Ok((secret, url));
    }
    if source.config.is_empty() && !source.data_dir().join("homeserver.yaml").exists() {
        return Err(Failure::usage(format!(
            "no shared secret: give the server's configuration with -c, its data folder with \
             --data-dir (there is no {}/homeserver.yaml), or the secret with -k",
            source.data_dir().display()
        )));
    }
    let config = source.load()?;
    let Some(secret) = &config.registration.shared_secret else {
        return Err(Failure::config(
            "the configuration has no registration_shared_secret, so accounts cannot be made this \
             way\n  what to do: add one, and start the server again",
        ));
    };
    let url = arguments.server_url.clone().or_else(|| url_of(&config));
    Ok((secret.expose().to_owned(), url.unwrap_or_else(|| DEFAULT_URL.to_owned())))
}

/// Where the server of this configuration listens for clients, as seen from this machine.
fn url_of(config: &Config) -> Option<String> {
    let fits = |listener: &&Listener| {
        listener.kind == ListenerKind::Http
            && listener.serves(ResourceName::Client)
            && !listener.tls
    };
    let urls = config.listeners.iter().filter(fits).filter_map(|listener| match &listener.bind {
        Bind::Tcp { addresses, port } => {
            let address = addresses.first().filter(|address| !address.is_unspecified())?;
            Some(format!("http://{}", std::net::SocketAddr::new(*address, *port)))
        }
        Bind::Unix { .. } => None,
    });
    let any = config.listeners.iter().filter(fits).find_map(|listener| match &listener.bind {
        Bind::Tcp { port, .. } => Some(format!("http://localhost:{port}")),
        Bind::Unix { .. } => None,
    });
    urls.into_iter().next().or(any)
}

struct Request<'a> {
    user: String,
    password: String,
    admin: bool,
    arguments: &'a Arguments,
}

enum Answer {
    Made(String),
    Exists,
}

impl Request<'_> {
    fn send(&self, url: &str, secret: &str) -> Result<Answer, Failure> {
        let url = format!("{}/_synapse/admin/v1/register", url.trim_end_matches('/'));
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .into();
        let given = read(&url, agent.get(&url).call())?;
        let Some(nonce) = given.body["nonce"].as_str() else {
            return Err(given.refusal(&url));
        };
        let mut body = json!({
            "nonce": nonce,
            "username": self.user,
            "password": self.password,
            "admin": self.admin,
            "mac": self.mac(nonce, secret),
        });
        for (key, value) in [
            ("displayname", &self.arguments.display_name),
            ("user_type", &self.arguments.user_type),
        ] {
            if let Some(value) = value {
                body[key] = value.as_str().into();
            }
        }
        let made = read(&url, agent.post(&url).send_json(&body))?;
        match (made.status, made.body["user_id"].as_str()) {
            (200, Some(user_id)) => Ok(Answer::Made(user_id.to_owned())),
            _ if self.arguments.exists_ok && made.body["errcode"] == "M_USER_IN_USE" => {
                Ok(Answer::Exists)
            }
            _ => Err(made.refusal(&url)),
        }
    }

    /// Shows that we know the secret, for exactly this account.
    fn mac(&self, nonce: &str, secret: &str) -> String {
        let role = if self.admin { "admin" } else { "notadmin" };
        let mut parts = vec![nonce, &self.user, &self.password, role];
        parts.extend(self.arguments.user_type.as_deref());
        let mut mac = Hmac::<sha1::Sha1>::new_from_slice(secret.as_bytes())
            .expect("HMAC takes keys of every length");
        mac.update(parts.join("\0").as_bytes());
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

struct Reply {
    status: u16,
    body: Value,
}

impl Reply {
    fn refusal(&self, url: &str) -> Failure {
        let errcode = self.body["errcode"].as_str().unwrap_or("no errcode");
        let error = self.body["error"].as_str().unwrap_or("no explanation");
        Failure::refused(format!("{url} answered {} ({errcode}): {error}", self.status))
    }
}

fn read(
    url: &str,
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Reply, Failure> {
    let mut response = answer.map_err(|error| {
        Failure::unavailable(format!(
            "{url} cannot be reached: {error}\n  what to do: check that the server is running, or \
             give its address as the last argument"
        ))
    })?;
    let status = response.status().as_u16();
    // Anything but JSON is no Matrix server; the refusal then says the status.
    let body = response.body_mut().read_json().unwrap_or(Value::Null);
    Ok(Reply { status, body })
}
