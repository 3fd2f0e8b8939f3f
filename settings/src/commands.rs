//! What each command does, and what it answers.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use apexmcp_core::names::is_plain;
use apexmcp_core::policy::remote::MAX_DOCUMENT_LENGTH;
use apexmcp_core::problem::Problem;
use clap::CommandFactory;
use rusqlite::Connection;
use serde::Serialize;
use serde_json::{Value, json};

use crate::advice;
use crate::check::{self, Surroundings};
use crate::cli::{
    AuditCommand, Cli, ClientCommand, Command, EcdsCommand, HolderArgs, KeyCommand, LimitsCommand, OrgCommand, PolicyCommand,
    SigningKeyCommand, SsoCommand, TokenCommand,
};
use crate::clock::Moment;
use crate::database::{self, Actor, Change, Database};
use crate::document;
use crate::ecds;
use crate::failure::Failure;
use crate::issuer::{self, Finding, Reach};
use crate::output::{Answer, table};
use crate::plugin_config;
use crate::records::api_key::{self, ApiKey, NewKey};
use crate::records::client::{self, Client, NewClient};
use crate::records::limits::{self, Holder, Limits, Rate};
use crate::records::org::{self, Org};
use crate::records::provider::{self, Provider};
use crate::records::signing_key::{self, SigningKey};
use crate::records::{audit, revocation};
use crate::serve;

/// The token with which gateways fetch the policy.
const TOKEN: &str = "APEXMCP_SETTINGS_TOKEN";
/// Whoever knows the token knows the private keys.
const MIN_TOKEN_LENGTH: usize = 16;

/// Does what the command line asks for.
///
/// # Errors
/// Why it was not done.
pub fn run(cli: Cli) -> Result<Answer, Failure> {
    let actor = Actor { name: actor(cli.actor)?, now: Moment::now() };
    let session = Session { path: &cli.db, actor, json: cli.json };
    match cli.command {
        Command::Init => session.init(),
        Command::Org(command) => session.org(command),
        Command::Key(command) => session.key(command),
        Command::Client(command) => session.client(command),
        Command::Sso(command) => session.sso(command),
        Command::Limits(command) => session.limits(command),
        Command::SigningKey(command) => session.signing_key(command),
        Command::Token(command) => session.token(command),
        Command::Audit(AuditCommand::List { org, limit }) => session.audit(org.as_deref(), limit),
        Command::Policy(PolicyCommand::Export) => {
            let document = session.open()?.read(document::render)?;
            let json = serde_json::from_str(&document).map_err(Failure::during("the policy document"))?;
            Ok(Answer::new(document, json))
        }
        Command::Policy(PolicyCommand::Check { file, clusters, connectors, fetch_keys, allow_private_address }) => {
            let (clusters, connectors) = (clusters.into_iter().collect(), connectors.into_iter().collect());
            let surroundings = Surroundings { clusters, connectors, ..Surroundings::default() };
            let reach = if allow_private_address { Reach::Anywhere } else { Reach::Public };
            policy_check(&file, &surroundings, session.actor.now, fetch_keys.then_some(reach))
        }
        Command::Ecds(command) => session.ecds(command),
        Command::PluginConfig { format, origin } => plugin_config::render(format, &origin),
        Command::Serve { listen } => {
            let token = std::env::var(TOKEN).unwrap_or_default();
            if token.len() < MIN_TOKEN_LENGTH || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(Failure::new(format!(
                    "{TOKEN} must hold the token with which gateways fetch the policy, at least {MIN_TOKEN_LENGTH} visible characters: export {TOKEN}=$(openssl rand -hex 32)"
                )));
            }
            let json = session.json;
            // It tells itself where others can read the database.
            serve::run(&cli.db, Database::open(&cli.db)?, listen, token, |address| {
                let line =
                    if json { json!({"listening": address}).to_string() } else { format!("listening on http://{address}") };
                // Whoever started it may not read.
                let _ = writeln!(std::io::stdout(), "{line}");
            })?;
            Ok(Answer::silent())
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "apexmcp", &mut script);
            let script = String::from_utf8(script).map_err(Failure::during("the script"))?;
            Ok(Answer::new(script.trim_end(), json!({ "script": script })))
        }
    }
}

/// Whom the operating system takes this process for, unless somebody else is named.
fn actor(named: Option<String>) -> Result<String, Failure> {
    match named {
        Some(name) if name.trim().is_empty() || !name.chars().all(is_plain) => {
            Err(Failure::new("--actor must be visible characters"))
        }
        Some(name) => Ok(name),
        None => {
            let id = nix::unistd::geteuid();
            let user = nix::unistd::User::from_uid(id).ok().flatten();
            Ok(user.map_or_else(|| format!("uid {id}"), |user| user.name))
        }
    }
}

struct Session<'a> {
    path: &'a Path,
    actor: Actor,
    json: bool,
}

impl Session<'_> {
    fn open(&self) -> Result<Database, Failure> {
        let database = Database::open(self.path)?;
        if let Some(exposure) = database::exposure(self.path) {
            // At once: a command may fail after it, or show something that takes long to read.
            let _ = writeln!(std::io::stderr(), "apexmcp: warning: {exposure}");
        }
        Ok(database)
    }

    /// An answer whose text is made where it is shown.
    fn answer(&self, text: impl FnOnce() -> String, json: Value) -> Answer {
        Answer::new(if self.json { String::new() } else { text() }, json)
    }

    /// Makes a change, and then the file of it, if there is one.
    fn change<T>(
        &self,
        action: impl FnOnce(&Change<'_>, &Actor) -> Result<T, Failure>,
        answer: impl FnOnce(T) -> Answer,
    ) -> Result<Answer, Failure> {
        let mut database = self.open()?;
        let made = database.change(|change| {
            let made = action(change, &self.actor)?;
            // What gateways would not take would hold up every later change too, revocations with them.
            let policy = document::render(change)?;
            let was_good = |before: &Connection| ecds::check(before, &document::render(before)?);
            if let Err(failure) = ecds::check(change, &policy)
                // It was so before, as another connection sees it: what ends something is at least made.
                && Database::open(self.path)?.read(was_good).is_ok()
            {
                return Err(Failure::new(format!(
                    "nothing was changed, because no file could be written for Envoy then: {failure}"
                )));
            }
            Ok(made)
        })?;
        let answer = answer(made);
        Ok(match ecds::write(&mut database) {
            Ok(_) => answer,
            Err(failure) => answer.but(Failure::new(format!(
                "the change is made, but Envoy does not know of it: {failure}; mend that and run 'apexmcp ecds write'"
            ))),
        })
    }

    fn init(&self) -> Result<Answer, Failure> {
        let pem = signing_key::generate()?;
        let mut kid = String::new();
        Database::create(self.path, |change| {
            kid = signing_key::create(change, &self.actor, None, &pem)?.kid;
            Ok(())
        })?;
        let path = self.path.display();
        let text = format!(
            "{path} is made, with the signing key {kid}. Private keys are in it: only you can read it.\nNext: apexmcp org create acme-corp"
        );
        Ok(Answer::new(text, json!({"db": path.to_string(), "signing_key": kid})))
    }

    fn org(&self, command: OrgCommand) -> Result<Answer, Failure> {
        match command {
            OrgCommand::Create { name } => self.change(
                |change, actor| org::create(change, actor, &name),
                |org| {
                    let next = format!("apexmcp key create --org {name} --name 'ci agent' --expires 90d");
                    Answer::new(format!("org {name} is made: its endpoint is /mcp/{name}\nNext: {next}"), json!(org))
                },
            ),
            OrgCommand::List => {
                let orgs = self.open()?.read(org::list)?;
                Ok(self.answer(|| org_table(&orgs), json!(orgs)))
            }
            OrgCommand::Show { name } => {
                let org = self.open()?.read(|connection| org::show(connection, &name))?;
                Ok(Answer::new(org_table(std::slice::from_ref(&org)), json!(org)))
            }
            OrgCommand::Delete { name, yes: _ } => self.change(
                |change, actor| org::delete(change, actor, &name),
                |org| Answer::new(format!("org {name} is deleted, with all that it had"), json!(org)),
            ),
        }
    }

    fn key(&self, command: KeyCommand) -> Result<Answer, Failure> {
        match command {
            KeyCommand::Create { org, name, connectors, expires } => {
                let expires_at = expires.map(|duration| self.actor.now.plus(duration)).transpose()?;
                let new = NewKey { org: &org, name: &name, connectors: &connectors, expires_at };
                self.change(
                    |change, actor| api_key::create(change, actor, &new),
                    |(record, key, warnings)| {
                        let text = format!(
                            "{key}\n\nThis is {} of {org}. It is shown this once: put it into a secret manager.",
                            record.id
                        );
                        let warnings = warnings.iter().map(Problem::to_string).collect();
                        Answer { warnings, ..Answer::new(text, with(&record, &[("key", &key)])) }
                    },
                )
            }
            KeyCommand::List { org } => {
                let keys = self.open()?.read(|connection| api_key::list(connection, &org))?;
                Ok(self.answer(|| key_table(&keys), json!(keys)))
            }
            KeyCommand::Show { id } => {
                let key = self.open()?.read(|connection| api_key::show(connection, &id))?;
                Ok(Answer::new(key_table(std::slice::from_ref(&key)), json!(key)))
            }
            KeyCommand::Revoke { id } => self.change(
                |change, actor| api_key::revoke(change, actor, &id),
                |key| Answer::new(format!("{id} of {} is revoked", key.org), json!(key)),
            ),
        }
    }

    fn client(&self, command: ClientCommand) -> Result<Answer, Failure> {
        let secret_shown = |client: &Client, secret: &str| {
            let text = format!(
                "client id:     {}\nclient secret: {secret}\n\nThe secret is shown this once: put it into a secret manager.",
                client.client_id
            );
            Answer::new(text, with(client, &[("client_secret", secret)]))
        };
        match command {
            ClientCommand::Create { org, name, scopes, jwks } => {
                let jwks: Option<Value> = jwks.map(|file| read_json(&file)).transpose()?;
                let new = NewClient { org: &org, name: &name, scopes: &scopes, jwks: jwks.as_ref() };
                self.change(
                    |change, actor| client::create(change, actor, &new),
                    |(client, secret)| match secret {
                        Some(secret) => secret_shown(&client, &secret),
                        None => {
                            Answer::new(format!("client id: {}, authenticated by its own keys", client.client_id), json!(client))
                        }
                    },
                )
            }
            ClientCommand::List { org } => {
                let clients = self.open()?.read(|connection| client::list(connection, &org))?;
                Ok(self.answer(|| client_table(&clients), json!(clients)))
            }
            ClientCommand::Show { client_id } => {
                let client = self.open()?.read(|connection| client::show(connection, &client_id))?;
                Ok(Answer::new(client_table(std::slice::from_ref(&client)), json!(client)))
            }
            ClientCommand::RotateSecret { client_id } => self.change(
                |change, actor| client::rotate_secret(change, actor, &client_id),
                |(client, secret)| secret_shown(&client, &secret),
            ),
            ClientCommand::DropSecret { client_id } => self.change(
                |change, actor| client::drop_secret(change, actor, &client_id),
                |client| Answer::new(format!("the older secret of {client_id} is no longer valid"), json!(client)),
            ),
            ClientCommand::Revoke { client_id } => self.change(
                |change, actor| client::revoke(change, actor, &client_id),
                |client| Answer::new(format!("{client_id} of {} is revoked, and with it its tokens", client.org), json!(client)),
            ),
        }
    }

    fn sso(&self, command: SsoCommand) -> Result<Answer, Failure> {
        match command {
            SsoCommand::Configure {
                org,
                issuer,
                jwks_uri,
                audiences,
                default_scopes,
                no_default_scope,
                client_scopes,
                no_client_scope,
                force,
                allow_private_address,
            } => {
                // What nobody would save anyway is not asked for.
                let sharing = self.open()?.read(|connection| {
                    provider::require_room(connection, &org, &issuer)?;
                    provider::sharing(connection, &org, &issuer, &audiences)
                })?;
                let reach = if allow_private_address { Reach::Anywhere } else { Reach::Public };
                let client_scopes = (no_client_scope || !client_scopes.is_empty()).then_some(client_scopes);
                let issuer::Inspection { mut findings, scopes_supported } = issuer::inspect(&issuer, &jwks_uri, reach)?;
                let proposal = advice::client_scopes(client_scopes.as_deref(), scopes_supported.as_deref());
                findings.extend(proposal.finding.map(Finding::warning));
                let proposed = proposal.client_scopes;
                findings.extend(audiences.iter().filter_map(|audience| {
                    let why = advice::audience_of_many(&issuer, audience)?;
                    Some(Finding::warning(format!("--audience {audience}: {why}")))
                }));
                findings.extend(sharing.iter().map(|other| {
                    Finding::warning(format!(
                        "the org {other} has this issuer with one of these audiences: a token for one of the two is accepted in both"
                    ))
                }));
                let lines: Vec<String> =
                    findings.iter().map(|finding| format!("{}  {}", finding.mark(), finding.finding)).collect();
                let lines = lines.join("\n");
                let failed = findings.iter().filter(|finding| !finding.ok).count();
                if failed > 0 && !force {
                    let text = format!("{lines}\n\nNothing was saved. Mend it, or save it as it is with --force.");
                    let why = format!("nothing was saved: {failed} of {} findings failed", findings.len());
                    let answer =
                        Answer::new(text, json!({"saved": false, "findings": findings, "proposed_client_scopes": proposed}));
                    return Ok(answer.but(Failure::new(why)));
                }
                let default_scopes = (no_default_scope || !default_scopes.is_empty()).then_some(default_scopes);
                let configured_at = self.actor.now.to_string();
                let record =
                    Provider { org, issuer, jwks_uri, audience: audiences, default_scopes, client_scopes, configured_at };
                self.change(
                    |change, actor| provider::configure(change, actor, &record),
                    |()| {
                        let text = format!("{lines}\n\nSaved: tokens of {} are accepted for {}.", record.issuer, record.org);
                        let json = json!({
                            "saved": true, "findings": findings, "proposed_client_scopes": proposed, "identity_provider": record,
                        });
                        Answer::new(text, json)
                    },
                )
            }
            SsoCommand::List { org } => {
                let providers = self.open()?.read(|connection| provider::list(connection, &org))?;
                let row = |provider: &Provider| {
                    let scopes = listed(provider.default_scopes.as_deref(), "mcp:call");
                    let client_scopes = listed(provider.client_scopes.as_deref(), "mcp:call");
                    [provider.issuer.clone(), provider.jwks_uri.clone(), provider.audience.join(" "), scopes, client_scopes]
                };
                let rows: Vec<_> = providers.iter().map(row).collect();
                let empty = format!("{org} has no identity provider: see 'apexmcp sso configure --help'");
                let text = || table(["ISSUER", "JWKS URI", "AUDIENCE", "DEFAULT SCOPES", "CLIENT SCOPES"], &rows, &empty);
                Ok(self.answer(text, json!(providers)))
            }
            SsoCommand::Remove { org, issuer } => self.change(
                |change, actor| provider::remove(change, actor, &org, &issuer),
                |provider| Answer::new(format!("tokens of {issuer} are no longer accepted for {org}"), json!(provider)),
            ),
        }
    }

    fn limits(&self, command: LimitsCommand) -> Result<Answer, Failure> {
        let answer = |holder: Holder<'_>, limits: Option<&Limits>| {
            let rate = limits
                .and_then(|limits| limits.rate.as_ref())
                .map(|rate| format!("{}/{}, {} at once", rate.requests, rate.per, rate.burst.unwrap_or(rate.requests)));
            let quota = limits.and_then(|limits| limits.monthly_quota).map(|quota| format!("{quota} a month"));
            let all: Vec<String> = rate.into_iter().chain(quota).collect();
            let text = format!("{}: {}", holder.name(), if all.is_empty() { "no limits".to_owned() } else { all.join("; ") });
            Answer::new(text, json!({"holder": holder.name(), "limits": limits}))
        };
        match command {
            LimitsCommand::Set { holder, rate, burst, monthly_quota } => {
                let holder = holder_of(&holder)?;
                let limits = Limits { rate: rate.map(|rate| Rate { burst, ..rate }), monthly_quota };
                self.change(|change, actor| limits::set(change, actor, holder, Some(&limits)), |()| answer(holder, Some(&limits)))
            }
            LimitsCommand::Show { holder } => {
                let holder = holder_of(&holder)?;
                let limits = self.open()?.read(|connection| limits::show(connection, holder))?;
                Ok(answer(holder, limits.as_ref()))
            }
            LimitsCommand::Clear { holder } => {
                let holder = holder_of(&holder)?;
                self.change(|change, actor| limits::set(change, actor, holder, None), |()| answer(holder, None))
            }
        }
    }

    fn signing_key(&self, command: SigningKeyCommand) -> Result<Answer, Failure> {
        match command {
            SigningKeyCommand::Create { kid } => {
                let pem = signing_key::generate()?;
                self.change(
                    |change, actor| signing_key::create(change, actor, kid.as_deref(), &pem),
                    |key| {
                        let next = format!("in a minute, run 'apexmcp signing-key use {}'", key.kid);
                        let text =
                            if key.signs { format!("{} signs", key.kid) } else { format!("{} is published; {next}", key.kid) };
                        Answer::new(text, json!(key))
                    },
                )
            }
            SigningKeyCommand::List => {
                let keys = self.open()?.read(signing_key::list)?;
                let row = |key: &SigningKey| {
                    [key.kid.clone(), if key.signs { "signs, verifies" } else { "verifies" }.to_owned(), key.created_at.clone()]
                };
                let rows: Vec<_> = keys.iter().map(row).collect();
                Ok(Answer::new(table(["KID", "USE", "CREATED"], &rows, "no signing keys"), json!(keys)))
            }
            SigningKeyCommand::Use { kid } => self.change(
                |change, actor| signing_key::sign_with(change, actor, &kid),
                |key| Answer::new(format!("{kid} signs from now on; the others go on verifying"), json!(key)),
            ),
            SigningKeyCommand::Remove { kid } => self.change(
                |change, actor| signing_key::remove(change, actor, &kid),
                |key| Answer::new(format!("{kid} is removed; tokens that it signed are refused"), json!(key)),
            ),
        }
    }

    fn token(&self, command: TokenCommand) -> Result<Answer, Failure> {
        let TokenCommand::Revoke { org, jti, client, principal, issued_before } = command;
        match (jti, client, principal) {
            (Some(jti), ..) => self.change(
                |change, actor| revocation::of_token(change, actor, &org, &jti),
                |()| Answer::new(format!("the token {jti} of {org} is revoked"), json!({"org": org, "jti": jti})),
            ),
            (None, Some(client), _) => {
                let issued_before = self.revoked_until(issued_before)?;
                self.change(
                    |change, actor| revocation::of_client(change, actor, &org, &client, issued_before),
                    |()| {
                        let text = format!("the tokens of {client} issued before {issued_before} are revoked");
                        let at = issued_before.to_string();
                        Answer::new(text, json!({"org": org, "client_id": client, "issued_before": at}))
                    },
                )
            }
            (None, None, Some(principal)) => {
                let issued_before = self.revoked_until(issued_before)?;
                self.change(
                    |change, actor| revocation::of_principal(change, actor, &org, &principal, issued_before),
                    |()| {
                        let text = format!("the tokens of {principal} issued before {issued_before} are revoked");
                        let at = issued_before.to_string();
                        Answer::new(text, json!({"org": org, "principal": principal, "issued_before": at}))
                    },
                )
            }
            (None, None, None) => Err(Failure::new("--jti, --client or --principal is needed")),
        }
    }

    /// The moment before which tokens are revoked. The default is now.
    fn revoked_until(&self, named: Option<Moment>) -> Result<Moment, Failure> {
        // `iat` has whole seconds, and tokens of the present second must be revoked too.
        let until_now = self.actor.now.plus(Duration::from_secs(1))?;
        Ok(named.unwrap_or(until_now))
    }

    fn audit(&self, org: Option<&str>, limit: u32) -> Result<Answer, Failure> {
        let entries = self.open()?.read(|connection| audit::list(connection, org, limit))?;
        let row = |entry: &audit::Entry| {
            let org = entry.org.clone().unwrap_or_default();
            let details = if entry.details == json!({}) { String::new() } else { entry.details.to_string() };
            [
                entry.version.to_string(),
                entry.at.clone(),
                entry.actor.clone(),
                entry.action.clone(),
                org,
                entry.subject.clone(),
                details,
            ]
        };
        let text = || {
            let rows: Vec<_> = entries.iter().map(row).collect();
            table(["VERSION", "AT", "WHO", "WHAT", "ORG", "SUBJECT", "DETAILS"], &rows, "nothing was changed")
        };
        Ok(self.answer(text, json!(entries)))
    }

    fn ecds(&self, command: EcdsCommand) -> Result<Answer, Failure> {
        let written = |target: Option<ecds::Target>| {
            let target = target.ok_or_else(ecds::not_enabled)?;
            Ok(Answer::new(format!("{} holds the policy in force", target.file.display()), json!(target)))
        };
        match command {
            EcdsCommand::Enable { template, file } => {
                let target = ecds::Target::of(&template, &file)?;
                self.open()?.change(|change| ecds::enable(change, &self.actor, &target)).and_then(written)
            }
            EcdsCommand::Write => ecds::write(&mut self.open()?).and_then(written),
            EcdsCommand::Disable => {
                let target = self.open()?.change(|change| ecds::disable(change, &self.actor))?;
                Ok(Answer::new(format!("{} stays as it is from now on", target.file.display()), json!(target)))
            }
        }
    }
}

/// Checks a file. With `reach`, also fetches the key sets that the file names, from the addresses that `reach` allows.
fn policy_check(file: &Path, surroundings: &Surroundings, now: Moment, reach: Option<Reach>) -> Result<Answer, Failure> {
    let name = file.display().to_string();
    let mut report = check::check(&read(file)?, surroundings, now).map_err(Failure::during(&name))?;
    if let Some(reach) = reach {
        for (uri, path) in std::mem::take(&mut report.key_sets) {
            if let Some(message) = issuer::wrong_with_keys(&uri, reach) {
                report.warnings.push(Problem { path, message });
            }
        }
    }
    let errors = report.errors.iter().map(|problem| format!("error: {problem}"));
    let warnings = report.warnings.iter().map(|problem| format!("warning: {problem}"));
    let summary = format!("{name}: {} errors, {} warnings", report.errors.len(), report.warnings.len());
    let notes = report.notes.iter().map(|problem| format!("note: {problem}"));
    let lines: Vec<String> = errors.chain(warnings).chain(notes).chain([summary]).collect();
    let list = |problems: &[Problem]| -> Vec<Value> {
        problems.iter().map(|problem| json!({"path": problem.path, "message": problem.message})).collect()
    };
    let json = json!({"errors": list(&report.errors), "warnings": list(&report.warnings), "notes": list(&report.notes)});
    let answer = Answer::new(lines.join("\n"), json);
    Ok(match report.errors.len() {
        0 => answer,
        count => answer.but(Failure::new(format!("{name}: {count} errors"))),
    })
}

/// The file, or standard input for `-`. No document that is read here may be longer than a policy.
fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let (name, mut input): (_, Box<dyn Read>) = if file == Path::new("-") {
        ("standard input".to_owned(), Box::new(std::io::stdin()))
    } else {
        let name = file.display().to_string();
        let file = fs::File::open(file).map_err(Failure::during(format_args!("{name} cannot be read")))?;
        (name, Box::new(file))
    };
    let limit = MAX_DOCUMENT_LENGTH.saturating_add(1).try_into().unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    input.by_ref().take(limit).read_to_end(&mut bytes).map_err(Failure::during(format_args!("{name} cannot be read")))?;
    if bytes.len() > MAX_DOCUMENT_LENGTH {
        return Err(Failure::new(format!("{name} is longer than {MAX_DOCUMENT_LENGTH} bytes, and gateways take at most that")));
    }
    Ok(bytes)
}

fn read_json(file: &Path) -> Result<Value, Failure> {
    serde_json::from_slice(&read(file)?).map_err(Failure::during(format_args!("{} is no JSON", file.display())))
}

fn holder_of(arguments: &HolderArgs) -> Result<Holder<'_>, Failure> {
    match (&arguments.org, &arguments.key) {
        (Some(org), _) => Ok(Holder::Org(org)),
        (None, Some(key)) => Ok(Holder::ApiKey(key)),
        (None, None) => Err(Failure::new("--org or --key is needed")),
    }
}

/// A record with what is shown once.
fn with(record: &impl Serialize, secrets: &[(&str, &str)]) -> Value {
    let mut value = json!(record);
    if let Value::Object(members) = &mut value {
        members.extend(secrets.iter().map(|(name, secret)| ((*name).to_owned(), json!(secret))));
    }
    value
}

/// Scopes in a table. If none are configured, the text `absent`; if the list is empty, a dash.
fn listed(scopes: Option<&[String]>, absent: &str) -> String {
    match scopes {
        None => absent.to_owned(),
        Some([]) => "-".to_owned(),
        Some(scopes) => scopes.join(" "),
    }
}

fn or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}

fn org_table(orgs: &[Org]) -> String {
    let row = |org: &Org| {
        let counts = [org.api_keys, org.oauth_clients, org.identity_providers].map(|count| count.to_string());
        let [keys, clients, providers] = counts;
        [org.name.clone(), keys, clients, providers, org.created_at.clone()]
    };
    let rows: Vec<_> = orgs.iter().map(row).collect();
    table(["NAME", "KEYS", "CLIENTS", "IDENTITY PROVIDERS", "CREATED"], &rows, "no orgs: run 'apexmcp org create'")
}

fn key_table(keys: &[ApiKey]) -> String {
    let row = |key: &ApiKey| {
        let connectors = key.connectors.as_ref().map_or_else(|| "all".to_owned(), |connectors| connectors.join(" "));
        let (expires, revoked) = (or_dash(key.expires_at.as_ref()), or_dash(key.revoked_at.as_ref()));
        [key.id.clone(), key.name.clone(), key.prefix.clone(), connectors, key.created_at.clone(), expires, revoked]
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    let headings = ["ID", "NAME", "BEGINS", "CONNECTORS", "CREATED", "EXPIRES", "REVOKED"];
    table(headings, &rows, "no keys: run 'apexmcp key create'")
}

fn client_table(clients: &[Client]) -> String {
    let row = |client: &Client| {
        let by = match client.secrets_created_at.len() {
            0 => "its own keys".to_owned(),
            1 => "a secret".to_owned(),
            count => format!("{count} secrets"),
        };
        let revoked = or_dash(client.revoked_at.as_ref());
        [client.client_id.clone(), client.name.clone(), client.scopes.join(" "), by, client.created_at.clone(), revoked]
    };
    let rows: Vec<_> = clients.iter().map(row).collect();
    let headings = ["CLIENT ID", "NAME", "SCOPES", "AUTHENTICATED BY", "CREATED", "REVOKED"];
    table(headings, &rows, "no clients: run 'apexmcp client create'")
}
