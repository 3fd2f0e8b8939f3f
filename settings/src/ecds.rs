//! Writes the policy to a file that Envoy watches (ECDS, `ExtensionConfigDiscoveryService` from a path), without a server.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use apexmcp_core::config::Config;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::access::Actor;
use crate::database::{Change, Check, Database, Record};
use crate::document;
use crate::failure::{Failure, Reason};
use crate::sql::{Row, Sql, first, values};
use crate::yaml;

const STRING: &str = "type.googleapis.com/google.protobuf.StringValue";
/// The JSON pointers of the plugin configuration in the template: of the wasm module, and of the native module.
const CONFIGURATIONS: [&str; 2] = ["/resources/0/typed_config/config/configuration", "/resources/0/typed_config/filter_config"];

/// The file that is written after each change, and its template.
#[derive(Debug, Serialize)]
pub struct Target {
    /// The filter without the policy.
    pub template: PathBuf,
    /// The file that Envoy watches.
    pub file: PathBuf,
}

/// The target, if one is enabled.
///
/// # Errors
/// If the database fails.
pub fn target(connection: &dyn Sql) -> Result<Option<Target>, Failure> {
    let read = |row: &Row<'_>| {
        let path = |column| row.get::<String>(column).map(PathBuf::from);
        Ok(Target { template: path("template")?, file: path("file")? })
    };
    first(connection, "SELECT template, file FROM ecds", values![], read)
}

impl Target {
    /// Checks the two files. Call this before the database is opened: a file may be the database itself, and reading it would
    /// end the locks of SQLite in this process.
    ///
    /// # Errors
    /// If the template has the wrong form, or `file` has another content than a file for Envoy.
    pub fn of(template: &Path, file: &Path) -> Result<Self, Failure> {
        let absolute = |path: &Path| {
            let path = std::path::absolute(path).map_err(Failure::during(Reason::InvalidArgument, path.display()))?;
            let is_text = path.to_str().is_some();
            is_text
                .then(|| path.clone())
                .ok_or_else(|| Failure::new(Reason::InvalidArgument, format!("the path {} is not valid UTF-8", path.display())))
        };
        let target = Self { template: absolute(template)?, file: absolute(file)? };
        let is_ours = |bytes: &[u8]| {
            let response = serde_json::from_slice::<Value>(bytes).ok();
            bytes.is_empty() || response.is_some_and(|response| place(&response).is_some())
        };
        if target.template == target.file || fs::read(&target.file).is_ok_and(|bytes| !is_ours(&bytes)) {
            let file = target.file.display();
            return Err(Failure::new(
                Reason::AlreadyExists,
                format!("{file} exists and is something else than a file for Envoy: name another --file, or remove it"),
            ));
        }
        read_template(&target.template)?;
        Ok(target)
    }
}

/// Enables a target, and writes its file.
///
/// # Errors
/// If the file cannot be written.
pub fn enable(change: &Change<'_>, actor: &Actor, target: &Target) -> Result<Option<Target>, Failure> {
    actor.check_operator()?;
    let (template, file) = (target.template.display().to_string(), target.file.display().to_string());
    change.execute(
        "INSERT INTO ecds (\"only\", template, file) VALUES (1, ?, ?)
            ON CONFLICT (\"only\") DO UPDATE SET template = excluded.template, file = excluded.file",
        values![&template, &file],
    )?;
    change.record(
        actor,
        &Record {
            action: "ecds.enable",
            org: None,
            subject: &file,
            details: json!({ "template": template }),
            check: Check::Nothing,
        },
    )?;
    write_within(change)
}

/// Disables the target. The file stays as it is.
///
/// # Errors
/// If no target is enabled.
pub fn disable(change: &Change<'_>, actor: &Actor) -> Result<Target, Failure> {
    actor.check_operator()?;
    let target = target(change)?.ok_or_else(not_enabled)?;
    change.execute("DELETE FROM ecds", values![])?;
    let subject = target.file.display().to_string();
    change.record(
        actor,
        &Record { action: "ecds.disable", org: None, subject: &subject, details: json!({}), check: Check::Nothing },
    )?;
    Ok(target)
}

/// Writes the file, if a target is enabled.
///
/// # Errors
/// If the template has the wrong form, the gateway would refuse the result, or the file cannot be written. The old file stays.
pub fn write(database: &mut Database) -> Result<Option<Target>, Failure> {
    // Read first without a lock on the database, because most databases have no target.
    match database.read(target)? {
        None => Ok(None),
        Some(_) => database.change(write_within).map(|changed| changed.value),
    }
}

/// Checks that the file could be written, if a target is enabled.
///
/// # Errors
/// If the template has the wrong form, or the gateway would refuse the result.
pub fn check(connection: &dyn Sql) -> Result<(), Failure> {
    match target(connection)? {
        None => Ok(()),
        Some(target) => fill(&target.template, &document::render(connection)?).map(drop),
    }
}

/// Writes the file within a transaction, so that an older policy never replaces a newer one.
fn write_within(change: &Change<'_>) -> Result<Option<Target>, Failure> {
    let Some(target) = target(change)? else { return Ok(None) };
    let filter = fill(&target.template, &document::render(change)?)?;
    replace(&target.file, filter.as_bytes())
        .map_err(Failure::during(Reason::FileUnwritable, format_args!("{} cannot be written", target.file.display())))?;
    Ok(Some(target))
}

pub fn not_enabled() -> Failure {
    Failure::new(Reason::EcdsNotEnabled, "no file for Envoy is enabled: run 'apexmcp ecds enable' first")
}

/// The template with `policy` in it, as Envoy reads it.
fn fill(template: &Path, policy: &str) -> Result<String, Failure> {
    let at = template.display();
    let mut filter = read_template(template)?;
    let [wasm, native] = CONFIGURATIONS;
    let place = place(&filter).ok_or_else(|| {
        let problem = format!("the template {at} has nothing at {wasm} or {native}: see envoy/ecds/filter.yaml");
        Failure::new(Reason::FileInvalid, problem)
    })?;
    let plugin = plugin(filter.pointer(place).and_then(|configuration| configuration.get("value"))).ok_or_else(|| {
        Failure::new(Reason::FileInvalid, format!("the template {at} has no plugin configuration at {place}/value"))
    })?;
    let plugin = with_policy(plugin, policy)?;
    // Environment variables of Envoy are unknown here. The policy in this file needs none.
    let problems = Config::parse(plugin.as_bytes(), &|_| None).err().unwrap_or_default();
    if let Some(problem) = problems.first() {
        return Err(Failure::new(Reason::PolicyRefused, format!("the gateway would refuse {at} with this policy: {problem}")));
    }
    // As a string, Envoy reads it in one pass. For a Struct with 100,000 keys, Envoy would need seconds.
    if let Some(configuration) = filter.pointer_mut(place) {
        *configuration = json!({"@type": STRING, "value": plugin});
    }
    Ok(filter.to_string())
}

/// The place of the plugin configuration.
fn place(filter: &Value) -> Option<&'static str> {
    CONFIGURATIONS.into_iter().find(|place| filter.pointer(place).is_some())
}

fn read_template(template: &Path) -> Result<Value, Failure> {
    let at = template.display();
    let text = fs::read_to_string(template)
        .map_err(Failure::during(Reason::FileUnreadable, format_args!("the template {at} cannot be read")))?;
    yaml::read_one(&text).map_err(Failure::during(Reason::FileInvalid, format_args!("the template {at}")))
}

/// The plugin configuration, which the template has as an object or as a string.
fn plugin(value: Option<&Value>) -> Option<serde_json::Map<String, Value>> {
    match value? {
        Value::Object(plugin) => Some(plugin.clone()),
        Value::String(text) => serde_json::from_str(text).ok(),
        _ => None,
    }
}

/// A plugin configuration with the policy in it. The policy stays as text: parsing 20 MB into values would take seconds.
#[derive(Serialize)]
struct WithPolicy<'a> {
    policy: Inline<'a>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

#[derive(Serialize)]
struct Inline<'a> {
    inline: &'a RawValue,
}

fn with_policy(mut rest: serde_json::Map<String, Value>, policy: &str) -> Result<String, Failure> {
    rest.remove("policy");
    let json =
        serde_json::from_str(policy).and_then(|inline| serde_json::to_string(&WithPolicy { policy: Inline { inline }, rest }));
    json.map_err(Failure::during(Reason::DatabaseFailed, "the policy document"))
}

/// Replaces a file atomically, also if the machine stops: writes a new file beside it, syncs it and renames it. The content
/// has private keys, so only the owner can read a new file. An existing file keeps its owner and mode.
///
/// The crate atomic-write-file keeps owner, mode and durability too. But a killed command can leave its temporary file, with
/// the private keys, under a random name that no later command removes.
fn replace(file: &Path, content: &[u8]) -> std::io::Result<()> {
    // For a symbolic link, the file that it points to is replaced.
    let file = &fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Always the same name, so that the next command removes what a killed command left.
    let mut name = std::ffi::OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(".new");
    let new = folder.join(name);
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let written = write_new(&new, file, content).and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written?;
    File::open(folder)?.sync_all()
}

/// Writes `new`, with the owner and mode of `old` if that exists.
fn write_new(new: &Path, old: &Path, content: &[u8]) -> std::io::Result<()> {
    let before = fs::metadata(old).ok();
    let mode = before.as_ref().map_or(0o600, |metadata| metadata.permissions().mode());
    // An existing file or link of this name is never used, because the content has private keys.
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    new.write_all(content)?;
    if let Some(before) = before {
        fchown(&new, Some(before.uid()), Some(before.gid()))?;
    }
    new.set_permissions(Permissions::from_mode(mode))?;
    new.sync_all()
}
