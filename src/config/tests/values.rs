//! What single keys become, and what is said about those that are wrong.

use std::{path::PathBuf, time::Duration};

use super::load;
use crate::*;

fn with(yaml: &str) -> Config {
    load(&format!("server_name: example.org\n{yaml}"))
        .unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

#[test]
fn a_small_file_gets_defaults() {
    let config = with("rc_message:\n  per_second: 5\n");
    assert_eq!(config.server_name, "example.org");
    assert_eq!(config.rates.message, Rate { per_second: 5.0, burst_count: 10.0 });
    assert_eq!(config.rooms.default_version.as_str(), "12");
    assert!(matches!(config.database, Database::Embedded { .. }));
    assert_eq!(config.signing_key_path, PathBuf::from("chatd-data/example.org.signing.key"));
    assert_eq!(config.sessions.refreshable_access_token_lifetime, Some(Duration::from_secs(300)));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn values_are_read_as_synapse_reads_them() {
    let config = with("
default_room_version: 11
public_baseurl: https://matrix.example.org/
session_lifetime: 1w
nonrefreshable_access_token_lifetime: infinity
ui_auth: { session_timeout: 15000 }
presence: { enabled: untracked, idle_timeout: 90s }
password_config: { enabled: only_for_reauth, pepper: salt }
chatd: { max_request_body: 2M }
listeners:
  - { port: 8448, type: http, bind_addresses: ['::1', 127.0.0.1], resources: [{ names: [federation], compress: true }] }
  - { path: /run/a.sock, mode: 0o660, type: http, resources: [{ names: client }] }
  - { path: /run/b.sock, mode: 0660, type: http, resources: [] }
  - { path: /run/c.sock, mode: 660, type: http }
  - { port: 9000, type: metrics, bind_address: '' }
");
    assert_eq!(config.rooms.default_version.as_str(), "11");
    assert_eq!(config.public_baseurl.as_deref(), Some("https://matrix.example.org"));
    assert_eq!(config.sessions.session_lifetime, Some(Duration::from_secs(604_800)));
    assert_eq!(config.sessions.nonrefreshable_access_token_lifetime, None);
    assert_eq!(config.sessions.ui_auth.session_timeout, Duration::from_secs(15));
    assert_eq!(config.presence.enabled, PresenceMode::Untracked);
    assert_eq!(config.presence.idle_timeout, Duration::from_secs(90));
    assert!(!config.passwords.login.may_log_in() && config.passwords.login.may_reauthenticate());
    assert_eq!(config.chatd.max_request_body, 2 << 20);
    let [federation, sockets @ .., metrics] = &config.listeners[..] else {
        panic!("five listeners")
    };
    assert_eq!(federation.to_string(), "[::1]:8448, 127.0.0.1:8448");
    assert!(federation.serves(ResourceName::Keys) && !federation.serves(ResourceName::Client));
    assert!(federation.compresses(ResourceName::Federation) && !federation.x_forwarded);
    for socket in sockets {
        assert!(matches!(socket.bind, Bind::Unix { mode: 0o660, .. }), "{socket}");
        assert!(socket.x_forwarded);
    }
    assert_eq!(metrics.to_string(), "[::]:9000, 0.0.0.0:9000");
}

#[test]
fn a_later_file_replaces_whole_keys_and_the_environment_single_ones() {
    let files = [
        (
            "a.yaml",
            "server_name: a.org\ndatabase: { name: psycopg2, args: { host: one, user: u, cp_max: 5 } }\n",
        ),
        ("b.yaml", "database: { name: psycopg2, args: { host: two } }\n"),
    ];
    let env = |pairs: &[(&str, &str)]| Overrides {
        env: pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        ..Overrides::default()
    };
    let over = env(&[
        ("CHATD_DATABASE__ARGS__PASSWORD", "007"),
        ("CHATD_REGISTRATION_SHARED_SECRET", "42"),
        ("CHATD_DATABASE__ARGS__PORT", "5433"),
        ("CHATD_RC_MESSAGE__BURST_COUNT", "99"),
        ("CHATD_TURN_URIS", "[\"turn:a\", \"turn:b\"]"),
        ("CHATD_PORT_8008_TCP", "tcp://10.0.0.1:8008"),
        ("CHATD_SERVER_NAM", "b.org"),
        ("HOME", "/root"),
    ]);
    let config = Config::from_texts(&files, &over).unwrap();
    let Database::Postgres(postgres) = &config.database else { panic!("{:?}", config.database) };
    assert_eq!(
        (postgres.host.as_str(), postgres.port, postgres.user.as_deref()),
        ("two", 5433, None)
    );
    assert_eq!(postgres.password.as_ref().map(Secret::expose), Some("007"));
    assert_eq!(postgres.pool, PoolSize { min: 1, max: 10 });
    assert_eq!(config.registration.shared_secret.as_ref().map(Secret::expose), Some("42"));
    assert_eq!(config.rates.message, Rate { per_second: 0.2, burst_count: 99.0 });
    assert_eq!(config.voip.uris, ["turn:a", "turn:b"]);
    assert_eq!(
        config.warnings,
        [
            "the environment variable CHATD_SERVER_NAM stands for no key; did you mean CHATD_SERVER_NAME?"
        ]
    );
    let wrong = env(&[("CHATD_BCRYPT_ROUNDS", "many")]);
    let error = Config::from_texts(&files, &wrong).unwrap_err().to_string();
    assert!(
        error.starts_with("CHATD_BCRYPT_ROUNDS: `bcrypt_rounds` is \"many\": expected"),
        "{error}"
    );
}

#[test]
fn folders_and_files_of_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let secret = folder.path().join("secret");
    write("10.yaml", "server_name: a.org\nturn_uris: [a]\n");
    write(
        "20.yaml",
        &format!("turn_uris: [b]\nregistration_shared_secret_path: {}\n", secret.display()),
    );
    write("ignored.yml", "server_name: b.org\n");
    write("secret", " hush\n");
    let config = Config::load(&[folder.path().to_owned()], &Overrides::default()).unwrap();
    assert_eq!(config.server_name, "a.org");
    assert_eq!(config.voip.uris, ["b"]);
    assert_eq!(config.registration.shared_secret.as_ref().map(Secret::expose), Some("hush"));
    assert_eq!(format!("{:?}", config.registration.shared_secret), "Some(***)");

    write("30.yaml", "registration_shared_secret: again\n");
    let error = Config::load(&[folder.path().to_owned()], &Overrides::default()).unwrap_err();
    assert_eq!(
        (error.key.as_deref(), error.line),
        (Some("registration_shared_secret_path"), Some(2))
    );
}

#[test]
fn keys_without_effect_and_slips_are_told_once() {
    let config = with(
        "media_store_path: /var/media
email: { smtp_host: mail }
http_proxy: proxy:3128
enable_registartion: true
presence: { enabeld: false }
listeners: [{ port: 1, type: http, resorces: [] }]
database: { name: psycopg2, args: { host: a, usr: b, cp_openfun: x }, txn_limit: 5 }
wholly_unheard_of: 1
",
    );
    let expected = [
        "`database.args.usr` has no effect; did you mean `user`?",
        "these keys have no effect: http_proxy (nobody is asked without TLS; `https_proxy` is \
         used); media_store_path (there is no media repository yet: uploads are refused); email (no \
         mail is sent, and third-party ids cannot be added yet); database.txn_limit",
        "homeserver.yaml, line 5: `enable_registartion` is no key that chatd or Synapse knows; did \
         you mean `enable_registration`?",
        "homeserver.yaml, line 6: `presence.enabeld` is no key that chatd or Synapse knows; did you \
         mean `enabled`?",
        "homeserver.yaml, line 7: `listeners.0.resorces` is no key that chatd or Synapse knows; did \
         you mean `resources`?",
        "homeserver.yaml, line 9: `wholly_unheard_of` is no key that chatd or Synapse knows",
    ];
    for line in expected {
        assert!(
            config.warnings.iter().any(|warning| warning == line),
            "{line}\nnot in {:#?}",
            config.warnings
        );
    }
    assert_eq!(config.warnings.len(), expected.len());
}

#[test]
fn mistakes_name_place_value_expectation_and_remedy() {
    let cases: &[(&str, &str)] = &[
        ("rooms: [", "homeserver.yaml, line 2: is not valid YAML"),
        (
            "bcrypt_rounds: 3",
            "homeserver.yaml, line 2: `bcrypt_rounds` is 3: expected a number from 4 to 31",
        ),
        (
            "bcrypt_rounds: 12\nbcrypt_rounds: 13",
            "homeserver.yaml, line 3: the key `bcrypt_rounds` stands here a second time",
        ),
        (
            "session_lifetime: soon",
            "`session_lifetime` is \"soon\": expected a duration such as 30s",
        ),
        (
            "default_room_version: '13'",
            "`default_room_version` is \"13\": expected a stable room version",
        ),
        ("public_baseurl: example.org", "expected an address that begins with https://"),
        (
            "presence:\n  enabled: maybe",
            "line 3: `presence.enabled` is \"maybe\": expected true, false or untracked",
        ),
        (
            "rc_login: { address: { per_second: fast } }",
            "`rc_login.address.per_second` is \"fast\": expected",
        ),
        ("registration_shared_secret: [hush]", "`registration_shared_secret` is ***: expected"),
        (
            "enable_registration: true",
            "would let anybody register without any check\n  what to do: add",
        ),
        ("listeners: [{ type: http }]", "`listeners.0`: has neither a port nor a path"),
        ("listeners: [{ type: http, port: 1, path: /a }]", "has both a port and a path"),
        (
            "listeners: [{ type: htpp, port: 1 }]",
            "`listeners.0.type` is \"htpp\": expected http or metrics",
        ),
        ("listeners: [{ type: http, port: 99999 }]", "`listeners.0.port` is 99999: expected"),
        (
            "listeners: [{ type: http, port: 1, tls: true }]",
            "`listeners.0.tls` is true: needs a certificate",
        ),
        (
            "listeners: [{ type: http, port: 1, bind_address: example.org }]",
            "expected an IP address",
        ),
        (
            "listeners: [{ type: http, port: 1, resources: [{ names: [clinet] }] }]",
            "what to do: did you mean `client`?",
        ),
        (
            "listeners: [{ type: http, port: 1 }, { type: http, port: 1 }]",
            "listens where listener 0 listens already",
        ),
        (
            "database: { name: sqlite3, args: { database: ':memory:' } }",
            "`database.name` is \"sqlite3\": chatd keeps its data in PostgreSQL only",
        ),
        (
            "database: { name: psycopg2, args: { sslmode: maybe } }",
            "`database.args.sslmode` is \"maybe\": expected one of disable",
        ),
        (
            "database: { name: psycopg2, args: { sslmode: verify-full } }",
            "`database.args.sslrootcert`: is missing",
        ),
        (
            "database: { name: psycopg2, args: { cp_min: 5, cp_max: 2 } }",
            "`database.args.cp_max` is 2: must be at least 1",
        ),
        ("databases: {}", "several databases are not supported"),
        (
            "turn_shared_secret_path: /nonexistent/secret",
            "`turn_shared_secret_path` is /nonexistent/secret: the file cannot be read",
        ),
        ("hs_disabled: true", "`hs_disabled`: chatd cannot keep everybody out yet"),
        (
            "enable_registration: true\nregistration_requires_token: true\nenable_registration_captcha: true",
            "chatd has no captcha yet",
        ),
    ];
    for (yaml, expected) in cases {
        let error =
            load(&format!("server_name: example.org\n{yaml}\n")).expect_err(yaml).to_string();
        assert!(error.contains(expected), "{yaml}\n  gave: {error}\n  not:  {expected}");
    }
    let nothing = load("").unwrap_err().to_string();
    assert!(
        nothing.contains("`server_name`: is missing\n  what to do: add `server_name: example.org`"),
        "{nothing}"
    );
    let address = load("server_name: https://example.org").unwrap_err().to_string();
    assert!(address.contains("write example.org, without https://"), "{address}");
}
