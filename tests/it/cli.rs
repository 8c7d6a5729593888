//! The command line as a person meets it: every command, its exit code, and what it says.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use chatd_kit::{Command, SHARED_SECRET, Settings, process::free_port, scenario};
use serde_json::{Value, json};

/// A call of chatd in `folder`.
fn chatd(folder: &Path, line: &str) -> Command {
    Command::new(env!("CARGO_BIN_EXE_chatd"), folder, line)
}

/// A folder with these files, which other users may enter.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// What `explain --json` says with these arguments.
fn explained(folder: &Path, line: &str) -> Value {
    serde_json::from_str(chatd(folder, &format!("explain --json {line}")).end().ok()).unwrap()
}

/// A `listeners` variable with one listener for clients.
fn listeners(port: u16) -> String {
    format!(
        "[{{port={port},type=http,bind_addresses=[\"127.0.0.1\"],resources=[{{names=[client]}}]}}]"
    )
}

/// A file with the shared secret of test servers.
fn secret_file() -> &'static str {
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/registration_shared_secret");
    fs::write(path, format!("{SHARED_SECRET}\n")).unwrap();
    path
}

#[test]
fn a_signing_key_is_made_and_the_one_in_use_is_retired() {
    let folder = folder(&[]);
    let here = folder.path();
    let printed = chatd(here, "generate-keys").end();
    let line = printed.ok();
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    assert_eq!((words.len(), words[0], &words[1][..2]), (3, "ed25519", "a_"), "{line}");
    assert_eq!(words[2].len(), 43, "{line}");

    let made = chatd(here, "generate-keys -o deep/new.key").end();
    made.ok();
    let text = fs::read_to_string(here.join("deep/new.key")).unwrap();
    let mode = fs::metadata(here.join("deep/new.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    chatd(here, "generate-keys -o deep/new.key").end().failed(73, &["deep/new.key"]);
    assert_eq!(fs::read_to_string(here.join("deep/new.key")).unwrap(), text);

    // The specification's key.
    let seed = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
    fs::write(here.join("old.key"), format!("ed25519 1 {seed}\n")).unwrap();
    fs::write(here.join("hs.yaml"), "server_name: example.org\nsigning_key_path: old.key\n")
        .unwrap();
    let made = chatd(here, "generate-keys -c hs.yaml").end();
    made.ok();
    let entry =
        "\"ed25519:1\": { key: \"XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI\", expired_ts: ";
    assert!(made.err.contains("old_signing_keys:") && made.err.contains(entry), "{made}");
}

#[tokio::test]
async fn a_generated_configuration_is_good_and_runs() {
    let folder = folder(&[]);
    let here = folder.path();
    let made = chatd(here, "generate-config --server-name example.org -o hs.yaml").end();
    made.ok();
    assert!(made.err.contains("wrote hs.yaml"), "{made}");
    assert!(made.err.contains("chatd run -c hs.yaml"), "{made}");
    let mode = fs::metadata(here.join("hs.yaml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "others must not read the secrets");
    chatd(here, "generate-config --server-name example.org -o hs.yaml")
        .end()
        .failed(73, &["hs.yaml: cannot be written", "what to do: choose another file"]);
    assert!(chatd(here, "check-config -c hs.yaml").end().ok().contains("is good"));

    let port = free_port().unwrap();
    for _first_and_second_start in 0..2 {
        let mut server = chatd(here, "run -c hs.yaml")
            .variable("CHATD_LISTENERS", &listeners(port))
            .start("chatd.log");
        server.until_it_says(&format!("listening on 127.0.0.1:{port}")).await;
        assert!(server.log().contains("to make an account: chatd register-user"));
        assert_eq!(server.sigterm().await, Some(0), "it ends in good order");
        let log = fs::read_to_string(here.join("chatd.log")).unwrap();
        assert!(log.contains("making a PostgreSQL"), "a slow start says what it does: {log}");
        assert!(log.contains("stopped"), "{log}");
        assert!(!log.contains("FATAL"), "an orderly end is no alarm: {log}");
        fs::write(here.join("chatd.log"), "making a PostgreSQL").unwrap();
    }
}

#[test]
fn later_files_and_the_environment_win() {
    let port = |port| {
        format!("listeners: [{{type: http, port: {port}, resources: [{{names: [client]}}]}}]\n")
    };
    let folder = folder(&[
        ("main.yaml", &format!("server_name: first.example\n{}", port(1001))),
        ("more/20.yaml", &port(1003)),
        ("more/10.yaml", &port(1002)),
        ("more/ignored.txt", &port(1004)),
        ("last.yaml", "server_name: last.example\n"),
    ]);
    let here = folder.path();
    let bind = |line: &str| explained(here, line)["listeners"][0]["bind"].to_string();
    assert!(bind("-c main.yaml").contains(":1001"));
    assert!(bind("-c main.yaml -c more").contains(":1003"), "a folder's files come by name");
    assert!(bind("--config-path more --config-file main.yaml").contains(":1001"));
    let all = explained(here, "--config main.yaml -c more -c last.yaml");
    assert_eq!(all["server_name"], "last.example");
    assert_eq!(all["files"], json!(["main.yaml", "more/10.yaml", "more/20.yaml", "last.yaml"]));

    let over = chatd(here, "explain --json -c main.yaml")
        .variable("CHATD_SERVER_NAME", "env.example")
        .variable("CHATD_DATABASE__NAME", "psycopg2")
        .variable("CHATD_DATABASE__ARGS__HOST", "db.example")
        .variable("CHATD_DATABASE__ARGS__USER", "chatd")
        .end();
    let over: Value = serde_json::from_str(over.ok()).unwrap();
    assert_eq!(over["server_name"], "env.example");
    assert_eq!(over["database"], "PostgreSQL at db.example, port 5432");
}

#[test]
fn mistakes_in_the_configuration_are_told_with_place_and_remedy() {
    let good = "server_name: example.org\n";
    let folder = folder(&[
        ("rounds.yaml", &format!("{good}bcrypt_rounds: 3\n")),
        ("syntax.yaml", &format!("{good}rooms: [\n")),
        ("slip.yaml", &format!("{good}enable_registartion: true\nurl_preview_enabled: true\n")),
        (
            "verify.yaml",
            &format!("{good}database: {{name: psycopg2, args: {{sslmode: verify-ca}}}}\n"),
        ),
        ("nameless.yaml", "report_stats: false\n"),
    ]);
    let here = folder.path();
    for command in ["check-config", "run", "explain"] {
        chatd(here, &format!("{command} -c rounds.yaml"))
            .end()
            .failed(78, &["rounds.yaml, line 2: `bcrypt_rounds` is 3: expected a number"]);
    }
    let failed = |line: &str, words: &[&str]| chatd(here, line).end().failed(78, words);
    failed("check-config -c syntax.yaml", &["syntax.yaml, line 2: is not valid YAML"]);
    failed("check-config -c nowhere.yaml", &["nowhere.yaml: cannot be read", "what to do: check"]);
    failed("check-config -c nameless.yaml", &["`server_name`: is missing", "what to do: add"]);
    failed("check-config -c verify.yaml", &["`database.args.sslrootcert`: is missing"]);

    let warned = chatd(here, "check-config -c slip.yaml").end();
    warned.ok();
    let lines: Vec<_> = warned.err.lines().collect();
    assert_eq!(lines.len(), 2, "one warning for keys without effect, one for the slip: {warned}");
    assert!(warned.err.contains("did you mean `enable_registration`?"), "{warned}");
    assert!(warned.err.contains("no effect: url_preview_enabled ("), "{warned}");
}

#[test]
fn arguments_that_make_no_sense_end_with_two() {
    let folder = folder(&[]);
    let failed = |line: &str, words: &[&str]| chatd(folder.path(), line).end().failed(2, words);
    failed("--nonsense", &["unexpected argument '--nonsense'"]);
    failed("rnu", &["unrecognized subcommand 'rnu'"]);
    failed("generate-config", &["--server-name"]);
    failed("generate-config --server-name https://a", &["is not a server name", "example.org"]);
    failed("register-user -u a -a --no-admin", &["cannot be used with"]);
    failed("register-user -u a -p b", &["no shared secret", "--data-dir"]);
}

#[test]
fn an_instance_is_explained_to_people_and_programs() {
    let folder = folder(&[(
        "shared.yaml",
        "server_name: example.org\n\
         database: {name: psycopg2, args: {user: chatd, host: db}}\n\
         redis: {enabled: true}\n\
         worker_replication_secret: hush\n\
         instance_map:\n\
         \x20 main: {host: localhost, port: 9093}\n\
         \x20 writer: {host: localhost, port: 9094}\n\
         stream_writers: {events: writer}\n\
         worker_listeners: [{type: http, port: 9094, resources: [{names: [client, replication]}]}]\n",
    )]);
    let here = folder.path();
    let worker = "--role generic_worker --name writer -c shared.yaml";
    let told = explained(here, worker);
    assert_eq!((&told["instance"], &told["role"]), (&json!("writer"), &json!("generic_worker")));
    assert!(told["writers"].as_array().unwrap().contains(&json!("events")), "{told:#}");
    assert_eq!(told["writers_of"]["typing"], json!(["main"]));
    assert!(told["routers"].as_array().unwrap().contains(&json!("client.sync")));
    let text = chatd(here, &format!("explain {worker}")).end();
    for words in
        ["instance   writer", "events                     here:", "elsewhere: main", ":9094"]
    {
        assert!(text.ok().contains(words), "{words:?} is not in {text}");
    }
    chatd(here, "explain --role generic_wroker --name w -c shared.yaml")
        .end()
        .failed(78, &["did you mean `synapse.app.generic_worker`?"]);

    let roles = chatd(here, "roles").end();
    for role in ["main", "generic_worker", "pusher", "federation_sender", "media_repository"] {
        assert!(roles.ok().contains(&format!("{role}\n")), "{role} is not in {roles}");
    }
    assert!(roles.ok().contains("synchrotron"), "{roles}");
}

#[test]
fn a_password_is_hashed_from_wherever_it_comes() {
    let folder = folder(&[
        ("secret", "correct horse\n"),
        ("pepper.yaml", "server_name: a.b\npassword_config: {pepper: salty}\nbcrypt_rounds: 4\n"),
    ]);
    let here = folder.path();
    let fits = |call: Command, password: &str| {
        let ended = call.end();
        assert!(ended.ok().starts_with("$2b$04$"), "{ended}");
        assert!(bcrypt::verify(password, ended.ok().trim()).unwrap(), "{ended}");
    };
    fits(chatd(here, "hash-password -r 4 -p").argument("correct horse"), "correct horse");
    fits(chatd(here, "hash-password -r 4 --password-file secret"), "correct horse");
    fits(chatd(here, "hash-password -r 4").input("correct horse\n"), "correct horse");
    fits(chatd(here, "hash-password -c pepper.yaml -p x"), "xsalty");
    chatd(here, "hash-password").end().failed(2, &["the password is empty"]);

    let mut terminal = chatd(here, "hash-password -r 4").on_terminal();
    terminal.shows("Password: ");
    terminal.types("correct horse");
    let echo = terminal.shows("Confirm password: ");
    assert!(!echo.contains("horse"), "a password is not shown: {echo:?}");
    terminal.types("correct horse");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(0), "{shown:?}");
    assert!(bcrypt::verify("correct horse", shown.trim()).unwrap(), "{shown:?}");
}

scenario! {
    /// Its arguments are those of a monolith.
    async fn users_are_registered_from_the_command_line(server: Server) in (monolith) with (
        Settings::new()
            .with("registration_shared_secret", Value::Null)
            .with("registration_shared_secret_path", secret_file())
    ) {
        let here = server.folder().to_owned();
        let url = server.url();
        let register = |line: &str| chatd(&here, &format!("register-user {line}"));
        let made = register("-c homeserver.yaml -u alice -p first --admin").end();
        assert!(made.ok().contains("made @alice:test.local"), "{made}");
        register("-c homeserver.yaml -u alice -p x --no-admin").end().failed(77, &["M_USER_IN_USE"]);
        register("-c homeserver.yaml -u alice -p x --no-admin --exists-ok").end().ok();
        register("-u bob --no-admin -k").argument(SHARED_SECRET).argument(&url)
            .input("from a pipe\n").end().ok();
        register("-u eve -p x --no-admin -k wrong").argument(&url).end()
            .failed(77, &["403", "HMAC incorrect"]);
        let nobody = format!("http://127.0.0.1:{}", free_port().unwrap());
        register("-u eve -p x --no-admin -k wrong").argument(&nobody).end()
            .failed(69, &["cannot be reached", "check that the server is running"]);

        let mut terminal = register("-c homeserver.yaml").on_terminal();
        terminal.shows("New user localpart: ");
        terminal.types("carol");
        let typed = ["one thing", "another", "sesame", "sesame"];
        for (prompt, password) in ["Password: ", "Confirm password: "].iter().cycle().zip(typed) {
            let before = terminal.shows(prompt);
            assert!(typed.iter().all(|one| !before.contains(one)), "it is echoed: {before:?}");
            terminal.types(password);
        }
        terminal.shows("Make admin [no]: ");
        terminal.types("yes");
        terminal.shows("made @carol:test.local");
        assert_eq!(terminal.end().0, Some(0));

        for (name, password, admin) in
            [("alice", "first", true), ("bob", "from a pipe", false), ("carol", "sesame", true)]
        {
            let body = json!({
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": name},
                "password": password,
            });
            server.request("POST", "/login").json(&body).await.ok();
            let database = server.database().connect().await.unwrap();
            let sql = "SELECT is_admin FROM users WHERE localpart = $1";
            let row = database.query_one(sql, &[&name]).await.unwrap();
            assert_eq!(row.get::<_, bool>(0), admin, "{name}");
        }
    }
}

#[tokio::test]
async fn logs_go_where_log_config_says() {
    let folder = folder(&[
        ("hs.yaml", "server_name: example.org\nlog_config: log.yaml\n"),
        (
            "log.yaml",
            "version: 1\n\
             formatters:\n\
             \x20 precise: {format: '%(levelname)s|%(name)s|%(message)s'}\n\
             handlers:\n\
             \x20 small: {class: logging.handlers.RotatingFileHandler, filename: small.log, \
                maxBytes: 300, backupCount: 2, formatter: precise}\n\
             \x20 daily: {class: logging.handlers.TimedRotatingFileHandler, filename: daily.log, \
                when: midnight, backupCount: 3, formatter: precise}\n\
             \x20 console: {class: logging.StreamHandler, level: ERROR}\n\
             root: {level: INFO, handlers: [small, daily, console]}\n\
             disable_existing_loggers: false\n",
        ),
        ("broken.yaml", "server_name: example.org\nlog_config: nowhere.yaml\n"),
    ]);
    let here = folder.path();
    chatd(here, "check-config -c broken.yaml").end().failed(78, &["nowhere.yaml"]);
    let port = free_port().unwrap();
    let server = chatd(here, "run -c hs.yaml")
        .variable("CHATD_LISTENERS", &listeners(port))
        .start("console.log");
    let daily = || fs::read_to_string(here.join("daily.log")).unwrap_or_default();
    chatd_kit::eventually("it listens", || async {
        if daily().contains("listening on") { Ok(()) } else { Err(daily()) }
    })
    .await;
    assert_eq!(server.log(), "", "nothing is an error");
    assert_eq!(server.sigterm().await, Some(0));
    assert!(daily().contains("INFO|chatd::cli::run|starting chatd"), "{}", daily());
    let size = |name: &str| fs::metadata(here.join(name)).map(|file| file.len());
    assert!(size("small.log").unwrap() <= 300 && size("small.log.2").unwrap() <= 300);
    assert!(size("small.log.3").is_err(), "the oldest is gone");
}

#[tokio::test]
async fn a_start_that_cannot_succeed_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = folder(&[("hs.yaml", "server_name: example.org\n")]);
    chatd(folder.path(), "run -c hs.yaml")
        .variable("CHATD_LISTENERS", &listeners(port))
        .end()
        .failed(1, &[&format!("cannot listen on 127.0.0.1:{port}"), "in use"]);
}
