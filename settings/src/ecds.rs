//! The policy in a file that Envoy watches (ECDS, `ExtensionConfigDiscoveryService` from a path): no server at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use apexmcp_core::config::Config;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::database::{Actor, Change, Check, Database, Record};
use crate::document;
use crate::failure::{Failure, Reason};
use crate::yaml;

const STRING: &str = "type.googleapis.com/google.protobuf.StringValue";
/// Where the plugin configuration is in a filter.
const CONFIGURATION: &str = "/resources/0/typed_config/config/configuration";

/// A file that is written anew with each change.
#[derive(Debug, Serialize)]
pub struct Target {
    /// The filter as it is, but for the policy.
    pub template: PathBuf,
    /// What Envoy watches.
    pub file: PathBuf,
}

/// The file, where there is one.
///
/// # Errors
/// What hinders the database.
pub fn target(connection: &Connection) -> Result<Option<Target>, Failure> {
    let read = |row: &rusqlite::Row<'_>| {
        let path = |column| row.get::<_, String>(column).map(PathBuf::from);
        Ok(Target { template: path("template")?, file: path("file")? })
    };
    Ok(connection.query_row("SELECT template, file FROM ecds", [], read).optional()?)
}

impl Target {
    /// These files. To be asked before the database is opened: one of them may be the database, and whoever closes it ends
    /// the locks that SQLite has on it in this process.
    ///
    /// # Errors
    /// Where the template is none, or `file` is something else.
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
            bytes.is_empty() || response.is_some_and(|response| response.pointer(CONFIGURATION).is_some())
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

/// Writes the file of `target`, and from now on with each change.
///
/// # Errors
/// Where it cannot be written.
pub fn enable(change: &Change<'_>, actor: &Actor, target: &Target) -> Result<Option<Target>, Failure> {
    let (template, file) = (target.template.display().to_string(), target.file.display().to_string());
    change.execute("INSERT OR REPLACE INTO ecds (only, template, file) VALUES (1, ?, ?)", params![template, file])?;
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

/// From now on, the file stays as it is.
///
/// # Errors
/// Where there is none.
pub fn disable(change: &Change<'_>, actor: &Actor) -> Result<Target, Failure> {
    let target = target(change)?.ok_or_else(not_enabled)?;
    change.execute("DELETE FROM ecds", [])?;
    let subject = target.file.display().to_string();
    change.record(
        actor,
        &Record { action: "ecds.disable", org: None, subject: &subject, details: json!({}), check: Check::Nothing },
    )?;
    Ok(target)
}

/// Writes the file of the policy in force, if there is one to write.
///
/// # Errors
/// Where the template is none, the gateway would refuse the result, or the file cannot be written; the old one stays.
pub fn write(database: &mut Database) -> Result<Option<Target>, Failure> {
    // Most have no such file, and should not wait for each other.
    match database.read(target)? {
        None => Ok(None),
        Some(_) => database.change(write_within).map(|changed| changed.value),
    }
}

/// Whether the file could be written of `policy`, if there is one to write.
///
/// # Errors
/// Where the template is none, or the gateway would refuse the result.
pub fn check(connection: &Connection, policy: &str) -> Result<(), Failure> {
    match target(connection)? {
        None => Ok(()),
        Some(target) => fill(&target.template, policy).map(drop),
    }
}

/// While the database is held nobody else changes it or writes the file: an older policy never replaces a newer one.
fn write_within(change: &Change<'_>) -> Result<Option<Target>, Failure> {
    let Some(target) = target(change)? else { return Ok(None) };
    let filter = fill(&target.template, &document::render(change)?)?;
    replace(&target.file, filter.as_bytes())
        .map_err(Failure::during(Reason::FileUnwritable, format_args!("{} cannot be written", target.file.display())))?;
    Ok(Some(target))
}

/// What to do where no file is written.
pub fn not_enabled() -> Failure {
    Failure::new(Reason::EcdsNotEnabled, "no file for Envoy is enabled: run 'apexmcp ecds enable' first")
}

/// The template with `policy` in it, as Envoy reads it.
fn fill(template: &Path, policy: &str) -> Result<String, Failure> {
    let at = template.display();
    let mut filter = read_template(template)?;
    let configuration = filter.pointer_mut(CONFIGURATION).ok_or_else(|| {
        Failure::new(Reason::FileInvalid, format!("the template {at} has nothing at {CONFIGURATION}: see envoy/ecds/filter.yaml"))
    })?;
    let plugin = plugin(configuration.get("value")).ok_or_else(|| {
        Failure::new(Reason::FileInvalid, format!("the template {at} has no plugin configuration at {CONFIGURATION}/value"))
    })?;
    let plugin = with_policy(plugin, policy)?;
    // What the variables of Envoy's environment hold is not known here; the policy in this file names none.
    let problems = Config::parse(plugin.as_bytes(), &|_| None).err().unwrap_or_default();
    if let Some(problem) = problems.first() {
        return Err(Failure::new(Reason::PolicyRefused, format!("the gateway would refuse {at} with this policy: {problem}")));
    }
    // As text, it is read in one pass; a Struct of 100,000 keys would take Envoy seconds.
    *configuration = json!({"@type": STRING, "value": plugin});
    Ok(filter.to_string())
}

fn read_template(template: &Path) -> Result<Value, Failure> {
    let at = template.display();
    let text = fs::read_to_string(template)
        .map_err(Failure::during(Reason::FileUnreadable, format_args!("the template {at} cannot be read")))?;
    yaml::read_one(&text).map_err(Failure::during(Reason::FileInvalid, format_args!("the template {at}")))
}

/// The plugin configuration, written out or as text.
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

/// All or nothing, also when the machine stops: written beside, synced, renamed. It holds private keys, so that a new one
/// is its owner's alone; one that is there keeps its owner and mode.
fn replace(file: &Path, content: &[u8]) -> std::io::Result<()> {
    // Where it is a link, what it leads to is replaced.
    let file = &fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Always of the same name, so that what a killed command left is gone with the next one.
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

/// Writes `new`, with the owner and mode of `old` where that is there.
fn write_new(new: &Path, old: &Path, content: &[u8]) -> std::io::Result<()> {
    let before = fs::metadata(old).ok();
    let mode = before.as_ref().map_or(0o600, |metadata| metadata.permissions().mode());
    // What has this name is never followed or shared: it holds private keys as soon as it is written.
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    new.write_all(content)?;
    if let Some(before) = before {
        fchown(&new, Some(before.uid()), Some(before.gid()))?;
    }
    new.set_permissions(Permissions::from_mode(mode))?;
    new.sync_all()
}
