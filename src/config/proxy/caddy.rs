//! Caddy: a whole `Caddyfile`, for release 2.6 and later.

use std::collections::BTreeSet;

use super::{
    Certificate, ProxyListen, ProxyOptions, introduction,
    plan::{Plan, Pool, Upstream},
    routes::{ADMIN, Balance, PRIVATE, Target},
};

pub(super) fn render(plan: &Plan, options: &ProxyOptions) -> String {
    let mut text = introduction(plan, "Caddy (2.6 or later)");
    text += &format!("{} {{\n", sites(plan, options).join(", "));
    text += &listening(plan, options);
    text += &format!(
        "    # As large as the largest upload (max_upload_size).\n    \
         request_body {{\n        max_size {}\n    }}\n\n    \
         # The user: the local part, in base64, in an access token; other tokens stand for\n    \
         # themselves. The header is for balancing only and ends here.\n    \
         @chatd_token header_regexp token Authorization \"^Bearer +syt_([^_]+)_\"\n    \
         @chatd_other_token {{\n        header Authorization *\n        \
         not header_regexp Authorization \"^Bearer +syt_\"\n    }}\n    \
         @chatd_query_token query access_token=*\n    \
         map {{query.access_token}} {{chatd_query_user}} {{\n        \
         \"~^syt_([^_]+)_\" \"${{1}}\"\n        default {{query.access_token}}\n    }}\n    \
         request_header @chatd_query_token X-Chatd-Key {{chatd_query_user}}\n    \
         request_header @chatd_other_token X-Chatd-Key {{header.Authorization}}\n    \
         request_header @chatd_token X-Chatd-Key {{re.token.1}}\n    \
         # The room in a path.\n    \
         @chatd_room path_regexp room \"/(rooms|join|knock)/([^/]+)\"\n    \
         request_header @chatd_room X-Chatd-Room {{re.room.2}}\n\n    \
         # Never for the outside. The path is looked at as it came, because that is how it is\n    \
         # passed on.\n    \
         @chatd_private expression `{{http.request.orig_uri.path}}.matches(\"{PRIVATE}\"){}`\n    \
         handle @chatd_private {{\n        respond 404\n    }}\n\n",
        plan.upload_bytes,
        if options.admin {
            String::new()
        } else {
            format!(" || {{http.request.orig_uri.path}}.matches(\"{ADMIN}\")")
        }
    );
    text += &families(plan, options);
    if options.admin {
        text += &handle(plan, options, "admin", ADMIN, "", Target::Clients);
    }
    text + "    # Nothing else is for the outside.\n    handle {\n        respond 404\n    }\n}\n"
}

/// Hosts and ports; without TLS any host, since what stands before Caddy knows who is meant.
fn sites(plan: &Plan, options: &ProxyOptions) -> Vec<String> {
    let mut sites = Vec::new();
    for ProxyListen { port, .. } in options.listens(plan) {
        if options.has_tls() {
            sites.extend(plan.hosts.iter().map(|host| format!("https://{host}:{port}")));
        } else {
            sites.push(format!("http://:{port}"));
        }
    }
    sites.sort();
    sites.dedup();
    sites
}

fn listening(plan: &Plan, options: &ProxyOptions) -> String {
    let addresses: BTreeSet<_> = options.listen.iter().filter_map(|one| one.address).collect();
    let mut text = String::new();
    for address in addresses {
        text += &format!("    bind {address}\n");
    }
    let configured = match &options.certificate {
        Certificate::None => return text,
        Certificate::Given(tls) => Some(tls),
        Certificate::Usual => plan.tls.as_ref(),
    };
    text + &match configured {
        None => "    # Caddy gets the certificates by itself.\n".to_owned(),
        Some(tls) => format!(
            "    tls {} {}\n",
            tls.certificate_path.display(),
            tls.private_key_path.display()
        ),
    }
}

fn families(plan: &Plan, options: &ProxyOptions) -> String {
    let mut text = String::new();
    for (index, (family, target)) in plan.families.iter().enumerate() {
        text += &format!("    # {}\n", family.what);
        let regex = &family.regex;
        if family.may_be_initial {
            text += "    # (without `since` it is the first of a device, and costs far more)\n";
            let first = format!("{index}_first");
            text += &handle(plan, options, &first, regex, "not query since=*", plan.initial_sync());
        }
        text += &handle(plan, options, &index.to_string(), regex, "", *target);
    }
    text
}

fn handle(
    plan: &Plan,
    options: &ProxyOptions,
    name: &str,
    regex: &str,
    more: &str,
    target: Target,
) -> String {
    let mut text = format!("    @chatd_{name} {{\n        path_regexp \"{regex}\"\n");
    if !more.is_empty() {
        text += &format!("        {more}\n");
    }
    text += &format!("    }}\n    handle @chatd_{name} {{\n");
    if let Some(pool) = plan.pools.iter().find(|pool| pool.target == target) {
        text += &reverse_proxy(plan, options, pool);
    }
    text + "    }\n"
}

fn reverse_proxy(plan: &Plan, options: &ProxyOptions, pool: &Pool) -> String {
    let members: Vec<_> = pool
        .members
        .iter()
        .chain(&pool.backups)
        .map(|(_, place)| match place {
            Upstream::Tcp(host, port) => format!("{host}:{port}"),
            Upstream::Unix(path) => format!("unix/{}", path.display()),
        })
        .collect();
    let policy = match pool.target.balance() {
        // In the order of the list, as long as they can be reached.
        _ if !pool.backups.is_empty() => "first",
        Balance::Least => "least_conn",
        Balance::User => "header X-Chatd-Key",
        Balance::Room => "header X-Chatd-Room",
        Balance::Source => "ip_hash",
    };
    let client = match options.trusted() {
        // Keeps what a proxy in front says.
        Some(networks) => format!("trusted_proxies {networks}"),
        None => "header_up X-Forwarded-For {remote_host}".to_owned(),
    };
    format!(
        "        reverse_proxy {} {{\n            lb_policy {policy}\n            \
         lb_try_duration 5s\n            fail_duration 2s\n            \
         header_up -X-Chatd-Key\n            header_up -X-Chatd-Room\n            \
         {client}\n            \
         transport http {{\n                dial_timeout 5s\n                \
         response_header_timeout {}s\n            }}\n        }}\n",
        members.join(" "),
        plan.patience.as_secs()
    )
}
