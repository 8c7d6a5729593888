//! HAProxy: a whole `haproxy.cfg`, for release 2.6 and later (`balance hash`).

use std::net::SocketAddr;

use super::{
    ProxyListen, ProxyOptions, introduction,
    plan::{Plan, Pool, Upstream},
    routes::{ADMIN, Balance, PRIVATE},
};

pub(super) fn render(plan: &Plan, options: &ProxyOptions) -> String {
    let mut text = introduction(plan, "HAProxy (2.6 or later)");
    let patience = plan.patience.as_secs();
    text += &format!(
        "defaults\n    mode http\n    timeout connect 5s\n    timeout http-request 30s\n    timeout http-keep-alive 75s\n    \
         # Longer than the longest sync.\n    \
         timeout client {patience}s\n    timeout server {patience}s\n    \
         option redispatch\n    retries 2\n    retry-on conn-failure\n\n"
    );
    text += &frontend(plan, options);
    for pool in &plan.pools {
        text += &backend(pool);
    }
    text
}

/// What requests are spread by.
const KEYS: &str = "    # The user: the local part, in base64, in an access token; other tokens stand for\n    \
     # themselves.\n    \
     http-request set-var(txn.token) urlp(access_token)\n    \
     http-request set-var(txn.token) req.hdr(authorization),word(2,' ') if { req.hdr(authorization) -m found }\n    \
     http-request set-var(txn.user) var(txn.token)\n    \
     http-request set-var(txn.user) var(txn.token),field(2,_) if { var(txn.token) -m beg syt_ }\n    \
     # The room in a path.\n    \
     http-request set-var(txn.room) path\n    \
     http-request set-var(txn.room) 'path,regsub(\"^.*/(rooms|join|knock)/\",\"\"),field(1,/)' if { path_reg '/(rooms|join|knock)/' }\n\n";

fn frontend(plan: &Plan, options: &ProxyOptions) -> String {
    format!(
        "frontend chatd\n{}{}{KEYS}{}    # Nothing else is for the outside.\n    \
         default_backend chatd_nobody\n\n\
         backend chatd_nobody\n    http-request deny deny_status 404\n\n",
        binds(plan, options),
        doors(plan, options),
        routes(plan, options)
    )
}

/// Where it listens.
fn binds(plan: &Plan, options: &ProxyOptions) -> String {
    let mut text = String::new();
    let tls = options.tls(plan).map_or_else(String::new, |tls| {
        text += "    # The key belongs into the same file, or beside it as FILE.key.\n";
        format!(" ssl crt {} alpn h2,http/1.1", tls.certificate_path.display())
    });
    for ProxyListen { address, port } in options.listens(plan) {
        text += &match address {
            Some(address) => format!("    bind {}{tls}\n", SocketAddr::new(address, port)),
            None => format!("    bind :::{port} v4v6{tls}\n"),
        };
    }
    text
}

/// Who a client is, and what is let in.
fn doors(plan: &Plan, options: &ProxyOptions) -> String {
    let mut text = String::new();
    let proto = if options.has_tls() { "https" } else { "http" };
    if let Some(networks) = options.trusted() {
        text += &format!(
            "    # A proxy in front: the client is whom it names.\n    \
             http-request set-src req.hdr_ip(x-forwarded-for,-1) if {{ src {networks} }} {{ req.hdr(x-forwarded-for) -m found }}\n"
        );
    }
    text += &format!(
        "    # Set, not added to: the instances take the first address for the client's.\n    \
         http-request set-header X-Forwarded-For %[src]\n    \
         http-request set-header X-Forwarded-Proto {proto}\n    \
         # As large as the largest upload (max_upload_size).\n    \
         http-request deny deny_status 413 if {{ req.hdr_val(content-length) gt {} }}\n    \
         # Never for the outside.\n    \
         http-request deny deny_status 404 if {{ path_reg '{PRIVATE}' }}\n",
        plan.upload_bytes
    );
    if !options.admin {
        text += &format!("    http-request deny deny_status 404 if {{ path_reg '{ADMIN}' }}\n");
    }
    text
}

/// Which requests go where.
fn routes(plan: &Plan, options: &ProxyOptions) -> String {
    let mut text = String::new();
    for (family, target) in &plan.families {
        text += &format!("    # {}\n", family.what);
        if family.may_be_initial {
            text += &format!(
                "    # (without `since` it is the first of a device, and costs far more)\n    \
                 use_backend chatd_{} if {{ path_reg '{}' }} !{{ urlp(since) -m found }}\n",
                plan.initial_sync().name(),
                family.regex
            );
        }
        text += &format!(
            "    use_backend chatd_{} if {{ path_reg '{}' }}\n",
            target.name(),
            family.regex
        );
    }
    if options.admin {
        text += &format!(
            "    # the admin API\n    use_backend chatd_clients if {{ path_reg '{ADMIN}' }}\n"
        );
    }
    text
}

fn backend(pool: &Pool) -> String {
    let balance = match pool.target.balance() {
        Balance::Least => "balance leastconn",
        Balance::User => "balance hash var(txn.user)\n    hash-type consistent",
        Balance::Room => "balance hash var(txn.room)\n    hash-type consistent",
        Balance::Source => "balance source\n    hash-type consistent",
    };
    let mut text = format!(
        "backend chatd_{}\n    {balance}\n    option httpchk GET /health\n",
        pool.target.name()
    );
    for (name, place) in &pool.members {
        text += &format!("    server {name} {} check\n", server(place));
    }
    if !pool.backups.is_empty() {
        text += "    option allbackups\n";
    }
    for (name, place) in &pool.backups {
        text += &format!("    server {name} {} check backup\n", server(place));
    }
    text + "\n"
}

fn server(place: &Upstream) -> String {
    match place {
        Upstream::Tcp(host, port) => format!("{host}:{port}"),
        Upstream::Unix(path) => format!("unix@{}", path.display()),
    }
}
