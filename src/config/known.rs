//! Every key that Synapse knows, by name: so that a key without effect is told apart from a typo.
//!
//! docs/configuration.md has the lists of this file; a test compares them.

use serde_json::Value;

use crate::{source::Layer, suggest};

/// What may stand under a key that has an effect.
enum Shape {
    /// A value; what is in it is the business of whoever reads it.
    Any,
    /// A map with these keys.
    Keys(&'static [(&'static str, Shape)]),
    /// A list, or a map with names of the admin's, of such things.
    Each(&'static Shape),
    /// Known to Synapse, and without effect here.
    Unused,
}

use Shape::{Any, Each, Keys, Unused};

const RATE: Shape = Keys(&[("per_second", Any), ("burst_count", Any)]);

const LISTENERS: Shape = Each(&Keys(&[
    ("port", Any),
    ("bind_addresses", Any),
    ("bind_address", Any),
    ("path", Any),
    ("mode", Any),
    ("type", Any),
    ("tls", Any),
    ("x_forwarded", Any),
    ("request_id_header", Any),
    ("tag", Any),
    ("resources", Each(&Keys(&[("names", Any), ("compress", Any)]))),
    ("additional_resources", Unused),
]));

const ROOM_RULES: Shape =
    Each(&Keys(&[("user_id", Any), ("alias", Any), ("room_id", Any), ("action", Any)]));

/// Keys that have an effect.
const SUPPORTED: &[(&str, Shape)] = &[
    ("server_name", Any),
    ("public_baseurl", Any),
    ("serve_server_wellknown", Any),
    ("extra_well_known_client_content", Any),
    ("report_stats", Any),
    ("signing_key_path", Any),
    ("old_signing_keys", Any),
    ("key_refresh_interval", Any),
    (
        "trusted_key_servers",
        Each(&Keys(&[("server_name", Any), ("verify_keys", Any), ("accept_keys_insecurely", Any)])),
    ),
    ("suppress_key_server_warning", Any),
    ("key_server_signing_keys_path", Any),
    ("log_config", Any),
    ("tls_certificate_path", Any),
    ("tls_private_key_path", Any),
    ("listeners", LISTENERS),
    // `database.args` is checked where it is read.
    (
        "database",
        Keys(&[
            ("name", Any),
            ("args", Any),
            ("txn_limit", Unused),
            ("allow_unsafe_locale", Unused),
        ]),
    ),
    ("databases", Any),
    ("enable_registration", Any),
    ("enable_registration_without_verification", Any),
    ("registration_requires_token", Any),
    ("registration_shared_secret", Any),
    ("registration_shared_secret_path", Any),
    ("allow_guest_access", Any),
    ("inhibit_user_in_use_error", Any),
    ("allow_underscore_prefixed_registration", Any),
    (
        "password_config",
        Keys(&[
            ("enabled", Any),
            ("localdb_enabled", Any),
            ("pepper", Any),
            ("pepper_path", Any),
            (
                "policy",
                Keys(&[
                    ("enabled", Any),
                    ("minimum_length", Any),
                    ("require_digit", Any),
                    ("require_symbol", Any),
                    ("require_lowercase", Any),
                    ("require_uppercase", Any),
                ]),
            ),
        ]),
    ),
    ("bcrypt_rounds", Any),
    ("session_lifetime", Any),
    ("refreshable_access_token_lifetime", Any),
    ("refresh_token_lifetime", Any),
    ("nonrefreshable_access_token_lifetime", Any),
    ("ui_auth", Keys(&[("session_timeout", Any)])),
    (
        "login_via_existing_session",
        Keys(&[("enabled", Any), ("require_ui_auth", Any), ("token_timeout", Any)]),
    ),
    ("rc_message", RATE),
    ("rc_registration", RATE),
    ("rc_registration_token_validity", RATE),
    ("rc_login", Keys(&[("address", RATE), ("account", RATE), ("failed_attempts", RATE)])),
    ("rc_admin_redaction", RATE),
    ("rc_joins", Keys(&[("local", RATE), ("remote", RATE)])),
    ("rc_joins_per_room", RATE),
    ("rc_invites", Keys(&[("per_room", RATE), ("per_user", RATE), ("per_issuer", RATE)])),
    ("rc_third_party_invite", RATE),
    ("rc_presence", Keys(&[("per_user", RATE)])),
    ("rc_room_creation", RATE),
    (
        "rc_federation",
        Keys(&[
            ("window_size", Any),
            ("sleep_limit", Any),
            ("sleep_delay", Any),
            ("reject_limit", Any),
            ("concurrent", Any),
        ]),
    ),
    ("max_upload_size", Any),
    ("default_room_version", Any),
    ("encryption_enabled_by_default_for_room_type", Any),
    ("allow_public_rooms_without_auth", Any),
    ("allow_public_rooms_over_federation", Any),
    ("allow_profile_lookup_over_federation", Any),
    ("allow_device_name_lookup_over_federation", Any),
    ("enable_room_list_search", Any),
    ("require_membership_for_aliases", Any),
    ("alias_creation_rules", ROOM_RULES),
    ("room_list_publication_rules", ROOM_RULES),
    (
        "default_power_level_content_override",
        Keys(&[("private_chat", Any), ("trusted_private_chat", Any), ("public_chat", Any)]),
    ),
    ("block_non_admin_invites", Any),
    ("forget_rooms_on_leave", Any),
    ("exclude_rooms_from_sync", Any),
    ("filter_timeline_limit", Any),
    (
        "presence",
        Keys(&[
            ("enabled", Any),
            ("include_offline_users_on_sync", Any),
            ("last_active_granularity", Any),
            ("sync_online_timeout", Any),
            ("idle_timeout", Any),
        ]),
    ),
    ("use_presence", Any),
    ("require_auth_for_profile_requests", Any),
    ("limit_profile_requests_to_users_who_share_rooms", Any),
    ("include_profile_data_on_invite", Any),
    ("enable_set_displayname", Any),
    ("enable_set_avatar_url", Any),
    ("turn_uris", Any),
    ("turn_shared_secret", Any),
    ("turn_shared_secret_path", Any),
    ("turn_username", Any),
    ("turn_password", Any),
    ("turn_user_lifetime", Any),
    ("turn_allow_guests", Any),
    ("federation_domain_whitelist", Any),
    ("federation_rr_transactions_per_room_per_second", Any),
    ("federation_verify_certificates", Any),
    ("federation_certificate_verification_whitelist", Any),
    ("federation_client_minimum_tls_version", Any),
    ("federation_custom_ca_list", Any),
    ("ip_range_blocklist", Any),
    ("ip_range_allowlist", Any),
    ("ip_range_blacklist", Any),
    ("ip_range_whitelist", Any),
    (
        "federation",
        Keys(&[
            ("client_timeout", Any),
            ("max_short_retry_delay", Any),
            ("max_long_retry_delay", Any),
            ("max_short_retries", Any),
            ("max_long_retries", Any),
            ("destination_min_retry_interval", Any),
            ("destination_retry_multiplier", Any),
            ("destination_max_retry_interval", Any),
        ]),
    ),
    (
        "limit_remote_rooms",
        Keys(&[
            ("enabled", Any),
            ("complexity", Any),
            ("complexity_error", Any),
            ("admins_can_join", Any),
        ]),
    ),
    ("user_agent_suffix", Any),
    ("https_proxy", Any),
    ("no_proxy_hosts", Any),
    ("worker_app", Any),
    ("worker_name", Any),
    ("worker_listeners", LISTENERS),
    ("worker_log_config", Any),
    ("worker_replication_secret", Any),
    ("worker_replication_secret_path", Any),
    ("worker_replication_host", Any),
    ("worker_replication_http_port", Any),
    ("worker_replication_http_tls", Any),
    ("instance_map", Each(&Keys(&[("host", Any), ("port", Any), ("tls", Any), ("path", Any)]))),
    (
        "stream_writers",
        Keys(&[
            ("events", Any),
            ("typing", Any),
            ("to_device", Any),
            ("account_data", Any),
            ("receipts", Any),
            ("presence", Any),
            ("push_rules", Any),
            ("device_lists", Any),
            ("thread_subscriptions", Any),
            ("quarantined_media_changes", Any),
        ]),
    ),
    ("run_background_tasks_on", Any),
    ("update_user_directory_from_worker", Any),
    ("update_user_directory", Any),
    ("notify_appservices_from_worker", Any),
    ("notify_appservices", Any),
    ("media_instance_running_background_jobs", Any),
    ("enable_media_repo", Any),
    ("pusher_instances", Any),
    ("start_pushers", Any),
    ("federation_sender_instances", Any),
    ("send_federation", Any),
    ("outbound_federation_restricted_to", Any),
    (
        "redis",
        Keys(&[
            ("enabled", Any),
            ("host", Any),
            ("port", Any),
            ("path", Any),
            ("password", Any),
            ("password_path", Any),
            ("dbid", Any),
            ("use_tls", Any),
            ("certificate_file", Any),
            ("private_key_file", Any),
            ("ca_file", Any),
            ("ca_path", Any),
            ("url", Any),
        ]),
    ),
    (
        "chatd",
        Keys(&[
            ("data_dir", Any),
            ("expose_request_cost", Any),
            ("allow_open_replication", Any),
            (
                "proxy_pools",
                Keys(&[
                    ("sync", Any),
                    ("initial_sync", Any),
                    ("rooms", Any),
                    ("federation", Any),
                    ("media", Any),
                    ("clients", Any),
                ]),
            ),
            ("fresh", Any),
            ("dns_servers", Any),
            ("max_request_body", Any),
            ("max_connections", Any),
            ("request_read_timeout", Any),
            ("response_write_timeout", Any),
            ("shutdown_timeout", Any),
            ("rate_limit_cache", Any),
            ("token_cache", Any),
            ("id_cache", Any),
            ("room_cache", Any),
            ("lane_batch_events", Any),
            ("lane_batch_bytes", Any),
            ("lane_queue", Any),
            ("sync_room_cache", Any),
            ("sync_room_events", Any),
            ("change_index", Any),
            ("stream_rows", Any),
            ("max_sync_timeout", Any),
            ("hash_threads", Any),
        ]),
    ),
];

/// Keys of one kind that have no effect.
struct Inert {
    /// What happens instead.
    instead: &'static str,
    keys: &'static [&'static str],
}

/// Keys that Synapse has and chatd only knows.
const INERT: &[Inert] = &[
    Inert {
        instead: "chatd has no such part to set up",
        keys: &[
            "background_updates",
            "caches",
            "daemonize",
            "event_cache_size",
            "form_secret",
            "form_secret_path",
            "gc_min_interval",
            "gc_thresholds",
            "macaroon_secret_key",
            "macaroon_secret_key_path",
            "manhole",
            "manhole_settings",
            "pid_file",
            "print_pidfile",
            "soft_file_limit",
            "templates",
            "use_frozen_dicts",
            "web_client_location",
            "worker_daemonize",
            "worker_main_http_uri",
            "worker_manhole",
            "worker_pid_file",
            "worker_replication_port",
        ],
    },
    Inert {
        instead: "nothing is reported to anybody; metrics are always counted",
        keys: &[
            "enable_metrics",
            "metrics_flags",
            "opentracing",
            "report_stats_endpoint",
            "sentry",
            "stats",
        ],
    },
    Inert {
        instead: "this part of federation is not there yet",
        keys: &["federation_metrics_domains", "federation_whitelist_endpoint_enabled"],
    },
    Inert { instead: "nobody is asked without TLS; `https_proxy` is used", keys: &["http_proxy"] },
    Inert {
        instead: "there is no media repository yet: uploads are refused",
        keys: &[
            "allowed_avatar_mimetypes",
            "dynamic_thumbnails",
            "enable_authenticated_media",
            "enable_local_media_storage",
            "max_avatar_size",
            "max_image_pixels",
            "max_pending_media_uploads",
            "max_spider_size",
            "media_retention",
            "media_storage_providers",
            "media_store_path",
            "media_upload_limits",
            "oembed",
            "prevent_media_downloads_from",
            "rc_media_create",
            "remote_media_download_burst_count",
            "remote_media_download_per_second",
            "thumbnail_sizes",
            "unused_expiration_time",
            "url_preview_accept_language",
            "url_preview_enabled",
            "url_preview_ip_range_allowlist",
            "url_preview_ip_range_blacklist",
            "url_preview_ip_range_blocklist",
            "url_preview_ip_range_whitelist",
            "url_preview_url_blacklist",
        ],
    },
    Inert {
        instead: "there is no single sign-on yet: users log in with passwords and tokens",
        keys: &[
            "cas_config",
            "jwt_config",
            "matrix_authentication_service",
            "oidc_providers",
            "saml2_config",
            "sso",
        ],
    },
    Inert {
        instead: "no mail is sent, and third-party ids cannot be added yet",
        keys: &[
            "account_threepid_delegates",
            "account_validity",
            "allowed_local_3pids",
            "default_identity_server",
            "disable_msisdn_registration",
            "email",
            "enable_3pid_changes",
            "next_link_domain_whitelist",
            "rc_3pid_validation",
            "registrations_require_3pid",
            "request_token_inhibit_3pid_errors",
        ],
    },
    Inert { instead: "no pushes are sent yet; clients see counts by /sync", keys: &["push"] },
    Inert {
        instead: "application services are not served yet",
        keys: &[
            "app_service_config_files",
            "track_appservice_user_ips",
            "track_puppeted_user_ips",
            "use_appservice_legacy_authorization",
        ],
    },
    Inert {
        instead: "registration has no captcha, and guests join no rooms by themselves",
        keys: &[
            "auto_join_rooms_for_guests",
            "enable_registration_captcha",
            "recaptcha_private_key",
            "recaptcha_private_key_path",
            "recaptcha_public_key",
            "recaptcha_public_key_path",
            "recaptcha_siteverify_api",
        ],
    },
    Inert {
        instead: "users are neither counted nor limited, and the server is open",
        keys: &[
            "admin_contact",
            "hs_disabled",
            "hs_disabled_message",
            "limit_usage_by_mau",
            "mau_appservice_trial_days",
            "mau_limit_alerting",
            "mau_limit_reserved_threepids",
            "mau_stats_only",
            "mau_trial_days",
            "max_mau_value",
            "server_context",
        ],
    },
    Inert {
        instead: "everything is kept",
        keys: &[
            "delete_stale_devices_after",
            "enable_ephemeral_messages",
            "forgotten_room_retention_period",
            "redaction_retention_period",
            "retention",
            "user_ips_max_age",
        ],
    },
    Inert {
        instead: "new users are in no room, and nobody accepts invites for them",
        keys: &[
            "auto_accept_invites",
            "auto_join_mxid_localpart",
            "auto_join_rooms",
            "autocreate_auto_join_room_preset",
            "autocreate_auto_join_rooms",
            "autocreate_auto_join_rooms_federated",
        ],
    },
    Inert {
        instead: "there are no such notices, forms or reports",
        keys: &["rc_reports", "server_notices", "user_consent"],
    },
    Inert {
        instead: "there is no search yet, in messages or users",
        keys: &["enable_search", "rc_user_directory", "user_directory"],
    },
    Inert {
        instead: "there are no extensions, delayed events or types of users yet",
        keys: &[
            "experimental_features",
            "matrix_rtc",
            "max_event_delay_duration",
            "modules",
            "rc_delayed_event_mgmt",
            "user_types",
        ],
    },
    Inert {
        instead: "chatd behaves as with Synapse's default",
        keys: &[
            "allow_per_room_profiles",
            "dummy_events_threshold",
            "exclude_rooms_from_presence",
            "room_prejoin_state",
        ],
    },
    Inert {
        instead: "Synapse does not read them any more either",
        keys: &[
            "acme",
            "enable_group_creation",
            "expire_access_token",
            "group_creation_prefix",
            "no_tls",
            "password_providers",
            "perspectives",
            "spam_checker",
            "third_party_event_rules",
            "tls_fingerprints",
            "trusted_third_party_id_servers",
            "webclient",
        ],
    },
];

/// Whether `key` is a top-level key that chatd or Synapse knows.
pub(crate) fn is_known(key: &str) -> bool {
    all().any(|known| known == key)
}

/// The known top-level key that `key` may be meant for.
pub(crate) fn nearest(key: &str) -> Option<&'static str> {
    suggest::nearest(key, all())
}

fn all() -> impl Iterator<Item = &'static str> {
    let inert = INERT.iter().flat_map(|group| group.keys);
    SUPPORTED.iter().map(|(key, _)| *key).chain(inert.copied())
}

/// One warning for all keys without effect, and one for each key that nobody knows.
pub(crate) fn report(layers: &[Layer], warnings: &mut Vec<String>) {
    let mut findings = Findings::default();
    for layer in layers {
        findings.layer(layer);
    }
    let groups = INERT.iter().filter_map(|group| {
        let found: Vec<_> = group
            .keys
            .iter()
            .filter(|key| findings.inert.iter().any(|one| one == *key))
            .copied()
            .collect();
        (!found.is_empty()).then(|| format!("{} ({})", found.join(", "), group.instead))
    });
    let groups: Vec<_> = groups.chain(findings.unused.iter().cloned()).collect();
    if !groups.is_empty() {
        warnings.push(format!("these keys have no effect: {}", groups.join("; ")));
    }
    warnings.append(&mut findings.unknown);
}

#[derive(Default)]
struct Findings {
    inert: Vec<String>,
    unused: Vec<String>,
    unknown: Vec<String>,
}

impl Findings {
    fn layer(&mut self, layer: &Layer) {
        for (key, value) in &layer.values {
            match SUPPORTED.iter().find(|(known, _)| known == key) {
                Some((_, shape)) => self.value(layer, key, value, shape),
                None if is_known(key) => self.inert.push(key.clone()),
                None => self.unknown(layer, key, nearest(key)),
            }
        }
    }

    fn value(&mut self, layer: &Layer, path: &str, value: &Value, shape: &Shape) {
        match (shape, value) {
            (Unused, _) => self.unused.push(path.to_owned()),
            (Keys(known), Value::Object(map)) => {
                for (key, value) in map {
                    let path = format!("{path}.{key}");
                    match known.iter().find(|(known, _)| known == key) {
                        Some((_, shape)) => self.value(layer, &path, value, shape),
                        None => {
                            let names = known.iter().map(|(name, _)| *name);
                            self.unknown(layer, &path, suggest::nearest(key, names));
                        }
                    }
                }
            }
            (Each(shape), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.value(layer, &format!("{path}.{index}"), item, shape);
                }
            }
            (Each(shape), Value::Object(map)) => {
                for (name, item) in map {
                    self.value(layer, &format!("{path}.{name}"), item, shape);
                }
            }
            // A value of the wrong type is refused by whoever reads it.
            (Any | Keys(_) | Each(_), _) => {}
        }
    }

    fn unknown(&mut self, layer: &Layer, path: &str, near: Option<&str>) {
        let file = layer.file.display();
        let line = layer.lines.get(path).map(|line| format!(", line {line}")).unwrap_or_default();
        let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        self.unknown
            .push(format!("{file}{line}: `{path}` is no key that chatd or Synapse knows{hint}"));
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// The keys without effect, as docs/configuration.md has them.
    fn as_markdown() -> String {
        let mut text = String::new();
        for group in INERT {
            let keys: Vec<_> = group.keys.iter().map(|key| format!("`{key}`")).collect();
            writeln!(text, "- **{}**: {}", group.instead, keys.join(", ")).unwrap();
        }
        text
    }

    #[test]
    fn the_documented_list_of_keys_without_effect_is_this_one() {
        let docs = include_str!("../../docs/configuration.md");
        let (_, rest) = docs.split_once("<!-- keys without effect -->\n").unwrap();
        let (listed, _) = rest.split_once("<!-- end -->").unwrap();
        assert!(listed.trim() == as_markdown().trim(), "put this there:\n{}", as_markdown());
    }

    #[test]
    fn every_key_with_an_effect_is_documented() {
        fn names(path: &str, shape: &Shape, found: &mut Vec<String>) {
            match shape {
                Keys(keys) => keys.iter().for_each(|(key, shape)| names(key, shape, found)),
                Each(shape) => names(path, shape, found),
                Any => found.push(path.to_owned()),
                Unused => {}
            }
        }
        let docs = include_str!("../../docs/configuration.md");
        let mut found = Vec::new();
        SUPPORTED.iter().for_each(|(key, shape)| names(key, shape, &mut found));
        found.retain(|key| !docs.contains(&format!("`{key}`")));
        assert_eq!(found, Vec::<String>::new(), "not in docs/configuration.md");
    }

    #[test]
    fn no_key_is_listed_twice() {
        let mut keys: Vec<_> = all().collect();
        keys.sort_unstable();
        let count = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }
}
