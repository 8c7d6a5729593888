//! The pieces of configuration in a page of documentation. Some copies of pages have lost the
//! fences around them, some the indentation, one all its line ends.

use serde_json::{Map, Value};

/// The keys with which pieces begin or go on at the top level.
const KEYS: &[&str] = &[
    "enable_media_repo",
    "federation_sender_instances",
    "instance_map",
    "listeners",
    "media_instance_running_background_jobs",
    "notify_appservices",
    "notify_appservices_from_worker",
    "outbound_federation_restricted_to",
    "pusher_instances",
    "redis",
    "run_background_tasks_on",
    "send_federation",
    "start_pushers",
    "stream_writers",
    "update_user_directory",
    "update_user_directory_from_worker",
    "use_presence",
    "worker_app",
    "worker_listeners",
    "worker_log_config",
    "worker_main_http_uri",
    "worker_name",
    "worker_replication_host",
    "worker_replication_http_port",
    "worker_replication_port",
    "worker_replication_secret",
];

/// Every piece in the page, in its order.
pub(super) fn pieces(page: &str) -> Vec<Map<String, Value>> {
    let texts = if page.contains("```yaml") { fenced(page) } else { plain(page) };
    texts.iter().map(|text| parse(text)).filter(|values| !values.is_empty()).collect()
}

fn parse(text: &str) -> Map<String, Value> {
    let parsed: Result<Option<_>, _> = serde_saphyr::from_str(text);
    parsed.unwrap_or_else(|error| panic!("{error}\n{text}")).unwrap_or_default()
}

/// What is between fences; includes of other files are left out.
fn fenced(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in page.split("```yaml").skip(1) {
        let (text, _) = part.split_once("```").unwrap();
        if text.contains("{{#include") {
            continue;
        }
        let lines: Vec<_> = text.lines().filter(|line| line.trim() != "|").collect();
        let is_indented = lines.iter().any(|line| line.starts_with("  "));
        found.push(match (is_indented, lines.len()) {
            (true, _) => lines.join("\n"),
            (false, 0 | 1) => indent(&split(text)),
            (false, _) => indent(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()),
        });
    }
    found
}

/// Runs of lines that begin with a key that is known.
fn plain(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut piece = String::new();
    for line in page.lines() {
        let text = line.trim();
        let is_key = !line.starts_with(' ')
            && text.split_once(':').is_some_and(|(key, _)| KEYS.contains(&key));
        let goes_on = text.is_empty() || line.starts_with([' ', '#']) || text.starts_with("- ");
        // A role is the first line of a worker's file.
        let ends = (!is_key && !goes_on) || text.starts_with("worker_app:");
        if ends && !piece.is_empty() {
            found.push(std::mem::take(&mut piece));
        }
        if is_key || (goes_on && !piece.is_empty()) {
            piece += line;
            piece.push('\n');
        }
    }
    found.push(piece);
    found
}

fn is_key(word: &str) -> bool {
    word.strip_suffix(':').is_some_and(|key| {
        key.bytes().all(|one| one.is_ascii_lowercase() || one.is_ascii_digit() || one == b'_')
    })
}

/// Lines from words; comments end where the next key or item begins.
fn split(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut in_comment = false;
    for word in text.split_whitespace() {
        in_comment |= word == "#";
        let begins = word == "-" || (is_key(word) && lines.last().is_none_or(|line| line != "-"));
        if begins {
            in_comment = false;
            lines.push(word.to_owned());
        } else if let Some(line) = lines.last_mut().filter(|_| !in_comment) {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines
}

/// Gives lines the indentation that their keys need.
fn indent(lines: &[String]) -> String {
    let mut text = String::new();
    let mut top = String::new();
    for line in lines {
        let line = line.trim();
        let key = line.trim_start_matches("- ").split(':').next().unwrap();
        let is_item = line.starts_with("- ");
        let depth = match top.as_str() {
            _ if !is_item && KEYS.contains(&key) => {
                key.clone_into(&mut top);
                0
            }
            "listeners" | "worker_listeners" if key == "names" => 6,
            "listeners" | "worker_listeners" if !is_item => 4,
            "instance_map" if !line.ends_with(':') => 4,
            "stream_writers" if is_item => 4,
            _ => 2,
        };
        text += &format!("{:depth$}{line}\n", "");
    }
    text
}
