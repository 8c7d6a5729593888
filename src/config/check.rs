//! What single keys cannot tell: values out of range, and keys that contradict each other.

use figment::Figment;
use serde::Deserialize;

use crate::{Config, ConfigError, Keys, ListenerKind};

/// Keys without effect here that keep people out in Synapse.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Guards {
    hs_disabled: bool,
    enable_registration: bool,
    enable_registration_captcha: bool,
    registrations_require_3pid: Vec<String>,
    matrix_authentication_service: AuthenticationService,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AuthenticationService {
    enabled: bool,
}

/// Refuses to start where ignoring a key would open the server more than its admin asked for.
pub(crate) fn check_guards(figment: &Figment) -> Result<(), ConfigError> {
    let guards: Guards = figment.extract().map_err(|error| crate::load::explain(&error))?;
    let open = guards.enable_registration;
    let cases = [
        ("hs_disabled", guards.hs_disabled, "chatd cannot keep everybody out yet"),
        (
            "enable_registration_captcha",
            open && guards.enable_registration_captcha,
            "chatd has no captcha yet, so registration would be open without it",
        ),
        (
            "registrations_require_3pid",
            open && !guards.registrations_require_3pid.is_empty(),
            "chatd cannot check third-party ids yet, so registration would be open without them",
        ),
        (
            "matrix_authentication_service.enabled",
            guards.matrix_authentication_service.enabled,
            "chatd cannot leave logins to an authentication service yet",
        ),
    ];
    for (key, in_the_way, problem) in cases {
        if in_the_way {
            return Err(ConfigError::at(key, problem)
                .remedy("remove the key if that is acceptable, or close registration"));
        }
    }
    Ok(())
}

/// Refuses what could not work, and adds warnings for what works but is not what was meant.
pub(crate) fn check(config: &mut Config) -> Result<(), ConfigError> {
    check_registration(config)?;
    check_listeners(config)?;
    check_public_baseurl(config)?;
    check_key_servers(config)?;
    let rounds = config.passwords.bcrypt_rounds;
    if !(4..=31).contains(&rounds) {
        return Err(
            ConfigError::at("bcrypt_rounds", "expected a number from 4 to 31").found(rounds)
        );
    }
    let pool = config.database.pool();
    if pool.max == 0 || pool.min > pool.max {
        return Err(ConfigError::at(
            "database.args.cp_max",
            "must be at least 1 and at least cp_min",
        )
        .found(pool.max));
    }
    Ok(())
}

fn check_registration(config: &Config) -> Result<(), ConfigError> {
    let registration = &config.registration;
    let open =
        registration.enabled && !registration.requires_token && !registration.without_verification;
    if open {
        return Err(ConfigError::at(
            "enable_registration",
            "would let anybody register without any check",
        )
        .found("true")
        .remedy(
            "add `registration_requires_token: true`, or, if anybody really may, \
                 `enable_registration_without_verification: true`",
        ));
    }
    Ok(())
}

fn check_listeners(config: &Config) -> Result<(), ConfigError> {
    let key = if config.workers.is_main() { "listeners" } else { "worker_listeners" };
    for (index, listener) in config.listeners.iter().enumerate() {
        if listener.tls && config.tls.is_none() {
            return Err(ConfigError::at(format!("{key}.{index}.tls"), "needs a certificate")
                .found("true")
                .remedy(
                    "add tls_certificate_path and tls_private_key_path, or let a proxy do TLS",
                ));
        }
        if listener.tls && listener.kind == ListenerKind::Metrics {
            return Err(ConfigError::at(
                format!("{key}.{index}.tls"),
                "metrics listeners have no TLS",
            )
            .found("true")
            .remedy("remove `tls`, or use `type: http` with the resource metrics"));
        }
        if let Some(other) = config.listeners[..index].iter().position(|o| o.bind == listener.bind)
        {
            return Err(ConfigError::at(
                format!("{key}.{index}"),
                format!("listens where listener {other} listens already"),
            )
            .found(listener)
            .remedy("give it a port of its own, or add its resources to the other"));
        }
    }
    Ok(())
}

fn check_public_baseurl(config: &Config) -> Result<(), ConfigError> {
    match &config.public_baseurl {
        Some(url) if !url.starts_with("https://") && !url.starts_with("http://") => {
            Err(ConfigError::at("public_baseurl", "expected an address that begins with https://")
                .found(format!("{url:?}")))
        }
        _ => Ok(()),
    }
}

/// A key server that is believed must be one that nobody can pretend to be.
fn check_key_servers(config: &mut Config) -> Result<(), ConfigError> {
    let verifies = config.federation.verifies_certificates;
    if config.keys.trusted_servers == Keys::default().trusted_servers {
        if !verifies && !config.keys.suppress_warning {
            config.warnings.push(
                "trusted_key_servers is not set, so matrix.org is believed about keys, although \
                 certificates are not checked; `trusted_key_servers: []` asks nobody"
                    .to_owned(),
            );
        }
        return Ok(());
    }
    for (index, server) in config.keys.trusted_servers.iter().enumerate() {
        if !verifies && server.verify_keys.is_none() && !server.accept_keys_insecurely {
            return Err(ConfigError::at(
                format!("trusted_key_servers.{index}"),
                "would be believed although neither its certificate nor its signature is checked",
            )
            .found(&server.server_name)
            .remedy(
                "give its `verify_keys`, or remove `federation_verify_certificates: false`; if it \
                 cannot be otherwise, add `accept_keys_insecurely: true`",
            ));
        }
    }
    Ok(())
}
