//! Checks answers against the OpenAPI files of the Matrix specification.
//!
//! `CHATD_SPEC_DIR` names the folder with `openapi/` and `event-schemas/`; without it nothing is
//! checked, and that is said once. Files are read when first needed, and a validator is compiled
//! once for each operation and status.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
};

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

/// What is wrong with `body` as the answer to this request; nothing if it cannot be told.
pub fn check(method: &str, path: &str, status: u16, body: &Value) -> Vec<String> {
    static SPEC: OnceLock<Option<Spec>> = OnceLock::new();
    let spec = SPEC.get_or_init(|| {
        let folder = std::env::var_os("CHATD_SPEC_DIR").filter(|folder| !folder.is_empty());
        if folder.is_none() {
            crate::say(
                "CHATD_SPEC_DIR is not set: answers are not checked against the specification",
            );
        }
        folder.map(|folder| Spec::open(Path::new(&folder)))
    });
    spec.as_ref().map(|spec| spec.check(method, path, status, body)).unwrap_or_default()
}

/// One method of one path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Operation {
    file: PathBuf,
    path: String,
    method: String,
}

/// Where a schema stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    file: PathBuf,
    pointer: String,
}

/// Where a response has its schema.
const CONTENT: &str = "/content/application~1json/schema";

/// Segments of a path; `None` matches anything.
type Pattern = Vec<Option<String>>;

struct Spec {
    folder: PathBuf,
    files: Files,
    operations: Vec<(Pattern, Operation)>,
    validators: Mutex<HashMap<Place, Arc<Validator>>>,
}

impl Spec {
    fn open(folder: &Path) -> Self {
        let folder = folder.canonicalize().expect("CHATD_SPEC_DIR is a folder");
        let mut operations = Vec::new();
        let listings = ["client-server", "server-server"].map(|api| {
            let listing = std::fs::read_dir(folder.join("openapi").join(api));
            listing.unwrap_or_else(|error| panic!("CHATD_SPEC_DIR has openapi/{api}: {error}"))
        });
        for entry in listings.into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "yaml") {
                operations.extend(operations_of(&entry.path()));
            }
        }
        // The pattern with the most literal segments first: `/keys/changes` before `/keys/{id}`.
        operations.sort_by_key(|(pattern, _)| pattern.iter().filter(|s| s.is_none()).count());
        Self { folder, files: Files::default(), operations, validators: Mutex::default() }
    }

    fn check(&self, method: &str, path: &str, status: u16, body: &Value) -> Vec<String> {
        let asks_back = status == 401 && body.get("flows").is_some();
        let Some(schema) = self.schema(method, path, status, asks_back) else {
            return Vec::new();
        };
        self.validator(&schema)
            .iter_errors(body)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect()
    }

    /// Where the schema of this answer stands.
    fn schema(&self, method: &str, path: &str, status: u16, asks_back: bool) -> Option<Place> {
        let declared =
            self.operation(method, path).and_then(|operation| self.declared(operation, status));
        match declared {
            Some(schema) => Some(schema),
            None if status >= 400 => {
                let name = if asks_back { "auth_response" } else { "errors/error" };
                let definitions = self.folder.join("openapi/client-server/definitions");
                let file = definitions.join(format!("{name}.yaml"));
                Some(Place { file, pointer: String::new() })
            }
            None => None,
        }
    }

    fn operation(&self, method: &str, path: &str) -> Option<&Operation> {
        let path = path.split('?').next().unwrap_or_default();
        let path = ["/_matrix/client/r0/", "/_matrix/client/api/v1/"]
            .iter()
            .find_map(|old| path.strip_prefix(old))
            .map_or_else(|| path.to_owned(), |rest| format!("/_matrix/client/v3/{rest}"));
        let segments: Vec<_> = path.split('/').collect();
        self.operations
            .iter()
            .filter(|(_, operation)| operation.method.eq_ignore_ascii_case(method))
            .find(|(pattern, _)| {
                pattern.len() == segments.len()
                    && pattern.iter().zip(&segments).all(|(wanted, segment)| {
                        wanted.as_ref().is_none_or(|wanted| wanted == segment)
                    })
            })
            .map(|(_, operation)| operation)
    }

    /// The schema that the operation itself declares for this status.
    fn declared(&self, operation: &Operation, status: u16) -> Option<Place> {
        let document = self.files.read(&operation.file);
        let status = status.to_string();
        let response = &document["paths"][&operation.path][&operation.method]["responses"][&status];
        if let Some(shared) = response["$ref"].as_str() {
            let file = operation.file.parent()?.join(shared);
            self.files.read(&file).pointer(CONTENT)?;
            return Some(Place { file: normal(&file), pointer: CONTENT.to_owned() });
        }
        response.pointer(CONTENT)?;
        let parts = ["paths", &operation.path, &operation.method, "responses", &status];
        let pointer: String = parts
            .iter()
            .map(|part| format!("/{}", part.replace('~', "~0").replace('/', "~1")))
            .collect();
        Some(Place { file: operation.file.clone(), pointer: pointer + CONTENT })
    }

    fn validator(&self, schema: &Place) -> Arc<Validator> {
        let mut validators = self.validators.lock().expect("no test panics while compiling");
        let compile = || {
            let validator = jsonschema::options()
                .with_draft(Draft::Draft202012)
                .build(&bundle(&self.files, schema.clone()))
                .unwrap_or_else(|error| panic!("cannot compile {schema:?}: {error}"));
            Arc::new(validator)
        };
        validators.entry(schema.clone()).or_insert_with(compile).clone()
    }
}

/// One schema with everything that it refers to, from whatever file, under `$defs`.
fn bundle(files: &Files, start: Place) -> Value {
    let (mut places, mut schemas) = (vec![start], Map::new());
    while let Some(place) = places.get(schemas.len()).cloned() {
        let document = files.read(&place.file);
        let schema = document.pointer(&place.pointer);
        let mut schema = schema.unwrap_or_else(|| panic!("no {place:?}")).clone();
        point_inside(&mut schema, &place.file, &mut places);
        schemas.insert(schemas.len().to_string(), schema);
    }
    json!({"$ref": "#/$defs/0", "$defs": schemas})
}

/// Turns each reference below `node`, which is in `file`, into one to `$defs`.
fn point_inside(node: &mut Value, file: &Path, places: &mut Vec<Place>) {
    match node {
        Value::Object(members) => {
            members.retain(|key, _| key != "example" && key != "examples");
            if let Some(Value::String(reference)) = members.get_mut("$ref") {
                let (path, pointer) = reference.split_once('#').unwrap_or((&*reference, ""));
                let target = match path {
                    "" => file.to_owned(),
                    path => normal(&file.parent().unwrap_or(file).join(path)),
                };
                let place = Place { file: target, pointer: pointer.to_owned() };
                let known = places.iter().position(|known| *known == place);
                let number = known.unwrap_or_else(|| {
                    places.push(place);
                    places.len() - 1
                });
                *reference = format!("#/$defs/{number}");
            }
            members.values_mut().for_each(|member| point_inside(member, file, places));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| point_inside(item, file, places)),
        _ => {}
    }
}

/// The operations of one file, found by its indentation: parsing all files at the start of each
/// test would take longer than most tests.
fn operations_of(file: &Path) -> Vec<(Pattern, Operation)> {
    let text = std::fs::read_to_string(file).expect("files of the specification can be read");
    let base = text
        .lines()
        .skip_while(|line| line.trim() != "basePath:")
        .find_map(|line| line.trim().strip_prefix("default: "))
        .unwrap_or_default()
        .trim_matches('"');
    let (mut operations, mut path) = (Vec::new(), None::<String>);
    for line in text.lines() {
        let indentation = line.len() - line.trim_start().len();
        let key = line.trim().trim_end_matches(':');
        match indentation {
            2 => {
                let key = key.trim_matches('"');
                path = key.starts_with('/').then(|| key.to_owned());
            }
            4 if ["get", "put", "post", "delete"].contains(&key) => {
                let Some(path) = &path else { continue };
                let full = format!("{}{}", base.trim_end_matches('/'), path.trim());
                let operation =
                    Operation { file: file.to_owned(), path: path.clone(), method: key.to_owned() };
                operations.push((pattern(&full), operation));
            }
            _ => {}
        }
    }
    operations
}

fn pattern(path: &str) -> Pattern {
    path.split('/').map(|s| (!s.starts_with('{')).then(|| s.to_owned())).collect()
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// YAML files, each parsed once.
#[derive(Default)]
struct Files {
    parsed: Mutex<HashMap<PathBuf, Arc<Value>>>,
}

impl Files {
    fn read(&self, path: &Path) -> Arc<Value> {
        let path = normal(path);
        let mut parsed = self.parsed.lock().expect("no test panics while reading");
        let read = || {
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let value = serde_saphyr::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            Arc::new(value)
        };
        parsed.entry(path.clone()).or_insert_with(read).clone()
    }
}
