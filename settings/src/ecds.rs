//! The policy in a file that Envoy watches (ECDS, `ExtensionConfigDiscoveryService` from a path): no server at all.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use apexmcp_auth::config::Config;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::database::{Actor, Change, Database, Record};
use crate::document;
use crate::failure::Failure;

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

/// Writes `file`, and from now on with each change.
///
/// # Errors
/// Where it cannot be written.
pub fn enable(change: &Change<'_>, actor: &Actor, template: &Path, file: &Path) -> Result<Option<Target>, Failure> {
    let absolute = |path: &Path| {
        let path = std::path::absolute(path).map_err(Failure::during(path.display()))?;
        path.to_str().map(str::to_owned).ok_or_else(|| Failure::new(format!("{} is not in UTF-8", path.display())))
    };
    let (template, file) = (absolute(template)?, absolute(file)?);
    let is_ours = |bytes: &[u8]| {
        let response = serde_json::from_slice::<Value>(bytes).ok();
        bytes.is_empty() || response.is_some_and(|response| response.pointer(CONFIGURATION).is_some())
    };
    if template == file || fs::read(&file).is_ok_and(|bytes| !is_ours(&bytes)) {
        return Err(Failure::new(format!("{file} is something else already: name another --file, or remove it")));
    }
    change.execute("INSERT OR REPLACE INTO ecds (only, template, file) VALUES (1, ?, ?)", params![template, file])?;
    change
        .record(actor, &Record { action: "ecds.enable", org: None, subject: &file, details: json!({ "template": template }) })?;
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
    change.record(actor, &Record { action: "ecds.disable", org: None, subject: &subject, details: json!({}) })?;
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
        Some(_) => database.change(write_within),
    }
}

/// While the database is held nobody else changes it or writes the file: an older policy never replaces a newer one.
fn write_within(change: &Change<'_>) -> Result<Option<Target>, Failure> {
    let Some(target) = target(change)? else { return Ok(None) };
    let filter = fill(&target.template, &document::render(change)?)?;
    replace(&target.file, filter.as_bytes())
        .map_err(Failure::during(format_args!("{} cannot be written", target.file.display())))?;
    Ok(Some(target))
}

/// What to do where no file is written.
pub fn not_enabled() -> Failure {
    Failure::new("no file is written: run 'apexmcp ecds enable' first")
}

/// The template with `policy` in it, as Envoy reads it.
fn fill(template: &Path, policy: &str) -> Result<String, Failure> {
    let at = template.display();
    let text = fs::read_to_string(template).map_err(Failure::during(format_args!("the template {at} cannot be read")))?;
    let mut filter: Value = serde_saphyr::from_str(&text).map_err(Failure::during(format_args!("the template {at}")))?;
    let configuration = filter
        .pointer_mut(CONFIGURATION)
        .ok_or_else(|| Failure::new(format!("the template {at} has nothing at {CONFIGURATION}: see envoy/ecds/filter.yaml")))?;
    let plugin = plugin(configuration.get("value"))
        .ok_or_else(|| Failure::new(format!("the template {at} has no plugin configuration at {CONFIGURATION}/value")))?;
    let plugin = with_policy(plugin, policy)?;
    // What the variables of Envoy's environment hold is not known here; the policy in this file names none.
    let problems = Config::parse(plugin.as_bytes(), &|_| None).err().unwrap_or_default();
    if let Some(problem) = problems.first() {
        return Err(Failure::new(format!("the gateway would refuse {at} with this policy: {problem}")));
    }
    // As text, it is read in one pass; a Struct of 100,000 keys would take Envoy seconds.
    *configuration = json!({"@type": STRING, "value": plugin});
    Ok(filter.to_string())
}

/// The plugin configuration, written out or as text.
fn plugin(value: Option<&Value>) -> Option<serde_json::Map<String, Value>> {
    match value? {
        Value::Object(plugin) => Some(plugin.clone()),
        Value::String(text) => serde_json::from_str(text).ok(),
        _ => None,
    }
}

fn with_policy(mut plugin: serde_json::Map<String, Value>, policy: &str) -> Result<String, Failure> {
    plugin.remove("policy");
    let rest = Value::Object(plugin).to_string();
    let rest = rest.strip_prefix('{').unwrap_or_default();
    let comma = if rest == "}" { "" } else { "," };
    Ok(format!(r#"{{"policy":{{"inline":{policy}}}{comma}{rest}"#))
}

/// All or nothing, also when the machine stops: written beside, synced, renamed. It holds private keys, so that a new one
/// is its owner's alone; one that is there keeps its owner and mode.
fn replace(file: &Path, content: &[u8]) -> std::io::Result<()> {
    // Where it is a link, what it leads to is replaced.
    let file = &fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let before = fs::metadata(file).ok();
    let mode = before.as_ref().map_or(0o600, |metadata| metadata.permissions().mode());
    let mut new = NamedTempFile::new_in(folder)?;
    new.write_all(content)?;
    if let Some(before) = before {
        fchown(new.as_file(), Some(before.uid()), Some(before.gid()))?;
    }
    new.as_file().set_permissions(Permissions::from_mode(mode))?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    File::open(folder)?.sync_all()
}
