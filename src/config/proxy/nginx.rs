//! nginx: a whole `nginx.conf`, or what belongs into its `http` section
//! (`/etc/nginx/conf.d/chatd.conf`).

use std::net::SocketAddr;

use super::{
    ProxyListen, ProxyOptions, introduction,
    plan::{Plan, Pool, Upstream},
    routes::{ADMIN, Balance, Family, PRIVATE, Target},
};

pub(super) fn render(plan: &Plan, options: &ProxyOptions) -> String {
    let mut site = maps(plan, options);
    for pool in &plan.pools {
        site += &upstream(pool);
    }
    site += &server(plan, options);
    introduction(plan, "nginx") + &if options.site_only { site } else { whole(&site) }
}

/// The site in an `nginx.conf` that holds nothing else.
fn whole(site: &str) -> String {
    let mut text = "worker_processes auto;\n\
        # Each waiting sync holds a connection of a client and one to an instance.\n\
        worker_rlimit_nofile 65536;\n\
        events {\n    worker_connections 16384;\n}\n\n\
        http {\n    \
        # Access tokens may be in the query: a log of requests must leave it out, as this does:\n    \
        # log_format chatd '$remote_addr [$time_local] \"$request_method $uri\" $status '\n    \
        #                  '$body_bytes_sent $request_time $upstream_addr';\n    \
        # access_log /var/log/nginx/chatd.log chatd;\n    \
        access_log off;\n    \
        server_tokens off;\n\n"
        .to_owned();
    for line in site.lines() {
        let indent = if line.is_empty() { "" } else { "    " };
        text += &format!("{indent}{line}\n");
    }
    text + "}\n"
}

/// Keys to balance on, and what is private.
fn maps(plan: &Plan, options: &ProxyOptions) -> String {
    let sync = plan.sync().name();
    let initial = plan.initial_sync().name();
    let admin = if options.admin { String::new() } else { format!("    \"~{ADMIN}\" 1;\n") };
    format!(
        "# The user: the local part, in base64, in an access token; other tokens stand for\n\
         # themselves.\n\
         map $arg_access_token $chatd_user_in_query {{\n    \
             default $arg_access_token;\n    \
             \"~^syt_(?<chatd_query_user>[^_]+)_\" $chatd_query_user;\n}}\n\
         map $http_authorization $chatd_user {{\n    \
             default $http_authorization;\n    \
             \"\" $chatd_user_in_query;\n    \
             \"~*^Bearer +syt_(?<chatd_header_user>[^_]+)_\" $chatd_header_user;\n}}\n\n\
         # The room in a path.\n\
         map $uri $chatd_room {{\n    \
             default $uri;\n    \
             \"~/(?:rooms|join|knock)/(?<chatd_room_id>[^/]+)\" $chatd_room_id;\n}}\n\n\
         # A sync without `since` is the first of a device and costs far more than the others.\n\
         map $arg_since $chatd_sync_pool {{\n    \
             default chatd_{sync};\n    \
             \"\" chatd_{initial};\n}}\n\n\
         # Never for the outside. The path is looked at as it came, because that is how it is\n\
         # passed on.\n\
         map $request_uri $chatd_private {{\n    \
             default 0;\n    \
             \"~{PRIVATE}\" 1;\n{admin}}}\n\n"
    )
}

fn upstream(pool: &Pool) -> String {
    let balance = match pool.target.balance() {
        Balance::Least => "    least_conn;\n",
        Balance::User => "    hash $chatd_user consistent;\n",
        Balance::Room => "    hash $chatd_room consistent;\n",
        Balance::Source => "    hash $binary_remote_addr consistent;\n",
    };
    // One instance needs no balance, and nginx has no backups beside a hash.
    let balance = if pool.backups.is_empty() { balance } else { "" };
    let mut text = format!("upstream chatd_{} {{\n{balance}", pool.target.name());
    for (name, place) in &pool.members {
        text += &format!("    server {} fail_timeout=2s; # {name}\n", address(place));
    }
    for (name, place) in &pool.backups {
        text += &format!("    server {} fail_timeout=2s backup; # {name}\n", address(place));
    }
    text + "    keepalive 32;\n}\n\n"
}

fn address(place: &Upstream) -> String {
    match place {
        Upstream::Tcp(host, port) => format!("{host}:{port}"),
        Upstream::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn server(plan: &Plan, options: &ProxyOptions) -> String {
    let mut text = "server {\n".to_owned();
    let ssl = if options.has_tls() { " ssl http2" } else { "" };
    for ProxyListen { address, port } in options.listens(plan) {
        text += &match address {
            Some(address) => format!("    listen {}{ssl};\n", SocketAddr::new(address, port)),
            None => format!("    listen {port}{ssl};\n    listen [::]:{port}{ssl};\n"),
        };
    }
    text += &format!("    server_name {};\n", plan.hosts.join(" "));
    if let Some(tls) = options.tls(plan) {
        text += &format!(
            "    ssl_certificate {};\n    ssl_certificate_key {};\n",
            tls.certificate_path.display(),
            tls.private_key_path.display()
        );
    }
    for network in &options.trust {
        text += &format!(
            "    # A proxy in front: the client is whom it names.\n    set_real_ip_from {network};\n"
        );
    }
    if !options.trust.is_empty() {
        text += "    real_ip_header X-Forwarded-For;\n    real_ip_recursive on;\n";
    }
    text += &format!(
        "\n    # As large as the largest upload (max_upload_size).\n    \
         client_max_body_size {};\n\n    \
         # HTTP/1.1 keeps connections to the instances open.\n    \
         proxy_http_version 1.1;\n    \
         proxy_set_header Connection \"\";\n    \
         proxy_set_header Host $host;\n    \
         # Set, not added to: the instances take the first address for the client's.\n    \
         proxy_set_header X-Forwarded-For $remote_addr;\n    \
         proxy_set_header X-Forwarded-Proto $scheme;\n    \
         # Longer than the longest sync. A slow answer is no reason to ask somebody else.\n    \
         proxy_read_timeout {}s;\n    \
         proxy_send_timeout {}s;\n    \
         proxy_connect_timeout 5s;\n    \
         proxy_next_upstream error;\n\n    \
         if ($chatd_private) {{\n        return 404;\n    }}\n\n",
        plan.upload_bytes,
        plan.patience.as_secs(),
        plan.patience.as_secs()
    );
    for (family, target) in &plan.families {
        text += &format!("    # {}\n    location ~ \"{}\" {{\n", family.what, family.regex);
        text += &location(family, *target);
        text += "    }\n";
    }
    if options.admin {
        text += &format!(
            "    # the admin API\n    location ~ \"{ADMIN}\" {{\n        \
             proxy_pass http://chatd_clients;\n    }}\n"
        );
    }
    text + "    # Nothing else is for the outside.\n    location / {\n        return 404;\n    }\n}\n"
}

fn location(family: &Family, target: Target) -> String {
    match family.target {
        Target::Sync if family.may_be_initial => {
            "        proxy_pass http://$chatd_sync_pool;\n".to_owned()
        }
        Target::Media => format!(
            "        # Uploads and downloads flow through, without files in between.\n        \
             proxy_request_buffering off;\n        proxy_max_temp_file_size 0;\n        \
             proxy_pass http://chatd_{};\n",
            target.name()
        ),
        _ => format!("        proxy_pass http://chatd_{};\n", target.name()),
    }
}
