//! The command line. Its shape, noun then verb, is that of kubectl and gh.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use apexmcp_core::limits::Unit;
use apexmcp_core::limits::document::Rate;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::clock::Moment;
use crate::database::Location;
use crate::oidc::OperatorRule;
use crate::plugin_config::Format;

const EXAMPLES: &str = "\
First steps:
  apexmcp init
  apexmcp org create acme-corp
  apexmcp key create --org acme-corp --name 'ci agent' --expires 90d

Let gateways fetch the policy and get each change within a second:
  APEXMCP_SETTINGS_TOKEN=... apexmcp serve --listen 127.0.0.1:9902

Exit codes: 0 success; 1 the command was refused or failed, and standard error says why; 2 wrong usage.";

/// Settings of the ApexMCP gateway: orgs, API keys, OAuth clients, identity providers and the policy built from them.
///
/// One SQLite file, or a PostgreSQL database, holds everything. A secret is shown once, when it is created; the file keeps only its hash. The audit log
/// ('apexmcp audit list') records each change, its time and its actor. Each change applies on every gateway within a second.
#[derive(Debug, Parser)]
#[command(name = "apexmcp", version, propagate_version = true, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// The database: a file, or postgres://USER@HOST/NAME
    #[arg(
        long,
        global = true,
        env = "APEXMCP_DB",
        default_value = "apexmcp.db",
        value_name = "DATABASE",
        hide_env_values = true
    )]
    pub db: Location,
    /// Print exactly one JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// The name that the audit log records for a change. The default is your user name
    #[arg(long, global = true, env = "APEXMCP_ACTOR", value_name = "NAME")]
    pub actor: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create the database and a first signing key
    Init,
    /// Manage orgs: the tenants that own all other records
    #[command(subcommand)]
    Org(OrgCommand),
    /// Manage static API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Manage OAuth clients, which get tokens from the gateway
    #[command(subcommand)]
    Client(ClientCommand),
    /// Manage the identity providers of customers
    #[command(subcommand)]
    Sso(SsoCommand),
    /// Limit the requests of an org or of one of its keys
    #[command(subcommand)]
    Limits(LimitsCommand),
    /// Show what gateways allowed and refused
    #[command(subcommand)]
    Usage(UsageCommand),
    /// Create and change orgs and their records, so that they are as a file says
    #[command(after_help = APPLY)]
    Apply(ApplyArgs),
    /// Manage the keys that sign the gateway's tokens
    #[command(subcommand, after_help = ROTATION)]
    SigningKey(SigningKeyCommand),
    /// Revoke tokens before they expire
    #[command(subcommand)]
    Token(TokenCommand),
    /// Manage the tokens for the management API
    #[command(subcommand)]
    AdminToken(AdminTokenCommand),
    /// Read the audit log
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Export and check the policy document of the gateways
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Copy the database, or encrypt the signing keys in it
    #[command(subcommand)]
    Database(DatabaseCommand),
    /// Write the policy to a file that Envoy watches, instead of serving it
    #[command(subcommand, after_help = ECDS)]
    Ecds(EcdsCommand),
    /// Print the filter's configuration for your mesh, with the policy from 'apexmcp serve'
    PluginConfig {
        /// The kind of mesh
        #[arg(long, value_enum)]
        format: Format,
        /// The gateway's public scheme://host[:port]
        #[arg(long, default_value = "https://gateway.example.com", value_name = "URL")]
        origin: String,
    },
    /// Serve the policy to gateways until SIGTERM or Ctrl-C
    #[command(after_help = SERVE)]
    Serve {
        /// The address and port for gateways. Port 0 chooses a free port
        #[arg(long, default_value = "127.0.0.1:9902", value_name = "ADDRESS")]
        listen: SocketAddr,
        /// The address and port of the console and the management API, such as 127.0.0.1:9903. Without it, there is neither
        #[arg(long, value_name = "ADDRESS")]
        console: Option<SocketAddr>,
        /// The gateway's public scheme://host[:port], for the examples that the console shows
        #[arg(long, default_value = "https://gateway.example.com", value_name = "URL", requires = "console")]
        origin: String,
        #[command(flatten)]
        sign_in: SignInArgs,
    },
    /// Print a one-time link that signs you in to the console of 'apexmcp serve --console'
    #[command(after_help = "\
Without --member, the link is for an operator, who may do everything. It works once, within ten minutes.

  apexmcp sign-in
  apexmcp sign-in --member ada@example.com --console https://settings.example.com")]
    SignIn {
        /// The address of a member of an org, who may do what the role of the member allows
        #[arg(long, value_name = "EMAIL")]
        member: Option<String>,
        /// The org, if the member belongs to more than one
        #[arg(long, requires = "member")]
        org: Option<String>,
        /// The URL at which people reach the console
        #[arg(long, default_value = "http://127.0.0.1:9903", value_name = "URL")]
        console: String,
    },
    /// Print a completion script. Example: source <(apexmcp completion bash)
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// Sign-in to the console with your OpenID Connect provider.
#[derive(Args, Debug)]
pub struct SignInArgs {
    /// The issuer of your OpenID Connect provider, with which people sign in to the console
    #[arg(long, value_name = "URL", requires_all = ["console", "sign_in_client_id", "console_url"])]
    pub sign_in_issuer: Option<String>,
    /// The client id that your provider gave to this console
    #[arg(long, value_name = "ID", requires = "sign_in_issuer")]
    pub sign_in_client_id: Option<String>,
    /// The people who are operators: an address that your provider has verified, or a claim and its value. Repeat the option for
    /// more
    #[arg(long = "sign-in-operator", value_name = "EMAIL|CLAIM=VALUE", requires = "sign_in_issuer")]
    pub sign_in_operators: Vec<OperatorRule>,
    /// A scope to request from your provider, besides openid. Repeat the option for more
    #[arg(long = "sign-in-scope", value_name = "SCOPE", requires = "sign_in_issuer", default_value = "email")]
    pub sign_in_scopes: Vec<String>,
    /// The URL at which people reach the console
    #[arg(long, value_name = "URL", requires = "console")]
    pub console_url: Option<String>,
}

const ROTATION: &str = "\
To change the key without refusing any token:
  apexmcp signing-key create            publish a new key; then wait one minute, because clients cache the old key set that long
  apexmcp signing-key use <kid>         sign with the new key from now on
  apexmcp signing-key remove <old kid>  after the last token of the old key has expired (tokens.ttl, one hour by default)";

const APPLY: &str = "\
FILE is YAML or JSON. Pass - to read standard input. A complete example:

  orgs:
    acme-corp:
      limits: {rate: {requests: 600, per: minute, burst: 60}, monthly_quota: 1000000}
      api_keys:
        - name: ci agent
          connectors: [github]                # the default is all connectors
          expires_at: 2099-01-01T00:00:00Z    # the default is never
          limits: {rate: {requests: 10, per: second}}
      oauth_clients:
        - name: billing
          scopes: [mcp:call:github]           # the default is mcp:call
      identity_providers:
        - issuer: https://your-company.okta.com/oauth2/default
          jwks_uri: https://your-company.okta.com/oauth2/default/v1/keys
          audience: apexmcp                   # or a list
          default_scopes: [mcp:call]
          client_scopes: [openid]
      members:
        - {email: ada@example.com, role: admin}

What the file omits stays as it is: an org, a kind of record, a record, or a member of a present record. Write null to set
connectors, expires_at, limits or client_scopes back to the default. --prune removes each record that the file omits, if the file
has the list of its kind: it revokes keys and clients, and removes providers and members. An empty list removes all of a kind.
Orgs are never deleted.

The name finds a key or a client. If several have the name, or to change the name, write 'id' of the key or 'client_id' of the
client. All steps are carried out, or none. The secrets of new keys and clients are printed once.

  apexmcp apply -f orgs.yaml --plan
  apexmcp apply -f orgs.yaml
  apexmcp apply -f orgs.yaml --prune          show what would be removed
  apexmcp apply -f orgs.yaml --prune --yes";

const ECDS: &str = "\
The template is a discovery response that contains the filter, such as envoy/ecds/filter.yaml. The file is replaced atomically.
A policy that the gateway would refuse is never written. The file contains private keys. A new file is readable by you alone
(mode 0600). An existing file keeps its owner and mode. Give Envoy's user read access to it.
If a command was killed before it wrote the file, run: apexmcp ecds write";

const SERVE: &str = "\
GET /v1/policy   the policy. Requires 'Authorization: Bearer' with the token in the environment variable APEXMCP_SETTINGS_TOKEN.
                 With If-None-Match and ?wait=30s, the answer comes when the policy changes; otherwise it is 304.
                 Gateways get only the parts that changed; other clients get the whole document
POST /v1/usage   reports of usage from gateways, if the environment variable APEXMCP_USAGE_TOKEN has their token. It must be
                 another token than that of the policy, and allows nothing else. Without it, usage is not collected
GET /healthz     200 while the database can be read
GET /metrics     for Prometheus

The document contains private keys, and this server does not encrypt it. Listen where only your gateways can connect, or put
TLS in front.

With --console, people administer their orgs with a browser at that address: 'apexmcp sign-in' prints a link. The management API
is at /api/v1; /api/v1/openapi.json describes it. It requires an admin token: 'apexmcp admin-token create'. Put TLS in front of
both.

People can also sign in with your OpenID Connect provider. Register the console there as a web application with the redirect URI
<console URL>/sign-in/callback, and put its secret into APEXMCP_SIGN_IN_SECRET. Members of an org sign in with the address that
the provider has verified:

  apexmcp serve --console 127.0.0.1:9903 --console-url https://settings.example.com \\
    --sign-in-issuer https://login.example.com --sign-in-client-id apexmcp-console \\
    --sign-in-operator ada@example.com --sign-in-operator groups=platform";

#[derive(Debug, Subcommand)]
pub enum OrgCommand {
    /// Create an org. Its clients call /mcp/<name>
    Create {
        /// 1 to 128 of A-Z a-z 0-9 . _ ~ -
        name: String,
    },
    /// List all orgs and the number of their records
    List,
    /// Show one org
    Show {
        /// The name of the org
        name: String,
    },
    /// Delete an org with all its keys, clients and identity providers
    Delete {
        /// The name of the org
        name: String,
        /// Confirm the deletion. It cannot be undone
        #[arg(long, required = true)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Create an API key and print it. It cannot be shown again
    #[command(
        after_help = "apexmcp key create --org acme-corp --name 'ci agent' --connector github --connector jira --expires 90d"
    )]
    Create {
        /// The org that owns the key
        #[arg(long)]
        org: String,
        /// A name that says what uses the key
        #[arg(long)]
        name: String,
        /// A connector that the key may call. Repeat the option for more. Without it, the key may call all connectors
        #[arg(long = "connector", value_name = "ID")]
        connectors: Vec<String>,
        /// How long the key is valid from now, such as 90d or 12h. Without it, the key never expires
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        expires: Option<Duration>,
    },
    /// List the keys of an org, including revoked ones
    List {
        /// The org that owns the keys
        #[arg(long)]
        org: String,
    },
    /// Show one key
    Show {
        /// The id of the key, such as key_1f9c
        id: String,
    },
    /// Replace a key by a new one with the same name, connectors and limits, and print it. The old key expires after the overlap
    #[command(after_help = "apexmcp key roll key_1f9c --overlap 7d")]
    Roll {
        /// The id of the key, such as key_1f9c
        id: String,
        /// How long the old key stays valid. With 0s, it is revoked immediately
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION", default_value = "24h")]
        overlap: Duration,
    },
    /// Revoke a key immediately
    Revoke {
        /// The id of the key, such as key_1f9c
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Create an OAuth client and print its secret. The secret cannot be shown again
    #[command(after_help = "apexmcp client create --org acme-corp --name billing --scope mcp:call:github")]
    Create {
        /// The org that owns the client
        #[arg(long)]
        org: String,
        /// A name that says what the client is for
        #[arg(long)]
        name: String,
        /// A scope that its tokens may have: mcp:call for all connectors, mcp:call:<connector-id> for one. Repeat the option
        /// for more
        #[arg(long = "scope", default_value = "mcp:call", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// The client's public keys (a JWK Set). The client then authenticates with them instead of a secret (private_key_jwt,
        /// RFC 7523)
        #[arg(long, value_name = "FILE")]
        jwks: Option<PathBuf>,
    },
    /// List the clients of an org, including revoked ones
    List {
        /// The org that owns the clients
        #[arg(long)]
        org: String,
    },
    /// Show one client
    Show {
        /// The id of the client, such as apx_client_4b7d9e21
        client_id: String,
    },
    /// Add a second secret and print it. The first secret stays valid until 'drop-secret'
    RotateSecret {
        /// The id of the client, such as apx_client_4b7d9e21
        client_id: String,
    },
    /// Drop the older of the client's two secrets
    DropSecret {
        /// The id of the client, such as apx_client_4b7d9e21
        client_id: String,
    },
    /// Revoke a client and all its tokens immediately
    Revoke {
        /// The id of the client, such as apx_client_4b7d9e21
        client_id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum SsoCommand {
    /// Check what an identity provider publishes, then accept its tokens
    #[command(after_help = "apexmcp sso configure --org acme-corp --issuer https://your-company.okta.com/oauth2/default \\
    --jwks-uri https://your-company.okta.com/oauth2/default/v1/keys --audience apexmcp")]
    Configure(ConfigureArgs),
    /// List the identity providers of an org
    List {
        /// The org that uses the providers
        #[arg(long)]
        org: String,
    },
    /// Remove an identity provider. Gateways then refuse its tokens
    Remove {
        /// The org that uses the provider
        #[arg(long)]
        org: String,
        /// The issuer, exactly as 'apexmcp sso list' shows it
        #[arg(long, value_name = "URL")]
        issuer: String,
    },
}

#[derive(Debug, Args)]
pub struct ConfigureArgs {
    /// The org that uses the provider
    #[arg(long)]
    pub org: String,
    /// The iss claim of the provider's tokens, exactly as it is in them
    #[arg(long, value_name = "URL")]
    pub issuer: String,
    /// The URL of the provider's key set
    #[arg(long, value_name = "URL")]
    pub jwks_uri: String,
    /// An aud claim that means this gateway. Repeat the option for more. A token needs one of them
    #[arg(long = "audience", required = true)]
    pub audiences: Vec<String>,
    /// A scope that is granted to a token without any mcp: scope; repeat the option for more. Without this option, the token
    /// is granted mcp:call, but nothing if any value in it contains mcp:call
    #[arg(long = "default-scope", value_name = "SCOPE")]
    pub default_scopes: Vec<String>,
    /// Grant nothing to a token without any mcp: scope
    #[arg(long, conflicts_with = "default_scopes")]
    pub no_default_scope: bool,
    /// A scope that challenges and the resource metadata tell clients to request from this provider; repeat the option for
    /// more. Without this option: mcp:call, or mcp:call:<connector-id> at a connector's own path
    #[arg(long = "client-scope", value_name = "SCOPE")]
    pub client_scopes: Vec<String>,
    /// Name no scope to clients. For a provider that does not know the mcp scopes and needs no others
    #[arg(long, conflicts_with = "client_scopes")]
    pub no_client_scope: bool,
    /// Save the provider even if a check of what it publishes fails
    #[arg(long)]
    pub force: bool,
    /// Allow addresses outside of the public Internet, and http: for providers within your own network
    #[arg(long)]
    pub allow_private_address: bool,
}

#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// A YAML or JSON file
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Show the steps and change nothing. Nothing is fetched from identity providers
    #[arg(long)]
    pub plan: bool,
    /// Also remove records that the file omits. Without --yes, the command shows them, changes nothing and fails
    #[arg(long)]
    pub prune: bool,
    /// Confirm the removals. They cannot be undone
    #[arg(long, requires = "prune", conflicts_with = "plan")]
    pub yes: bool,
    /// Save an identity provider even if a check of what it publishes fails
    #[arg(long)]
    pub force: bool,
    /// Allow addresses outside of the public Internet, and http: for providers within your own network
    #[arg(long)]
    pub allow_private_address: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct HolderArgs {
    /// The org. The limits count the requests of all its credentials together
    #[arg(long)]
    pub org: Option<String>,
    /// The id of one key. The limits of its org apply as well
    #[arg(long, value_name = "ID")]
    pub key: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum LimitsCommand {
    /// Set the limits, replacing the present ones. A request beyond a limit gets 429
    #[command(after_help = "apexmcp limits set --org acme-corp --rate 600/minute --burst 60 --monthly-quota 1000000")]
    Set {
        #[command(flatten)]
        holder: HolderArgs,
        /// Requests per second, minute, hour or day, such as 600/minute
        #[arg(long, value_parser = parse_rate, required_unless_present = "monthly_quota")]
        rate: Option<Rate>,
        /// Maximum burst. The default is the number of requests in --rate
        #[arg(long, requires = "rate", value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..))]
        burst: Option<u32>,
        /// Requests per calendar month
        #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..))]
        monthly_quota: Option<u32>,
    },
    /// Show the limits
    Show {
        #[command(flatten)]
        holder: HolderArgs,
    },
    /// Remove the limits
    Clear {
        #[command(flatten)]
        holder: HolderArgs,
    },
}

#[derive(Debug, Subcommand)]
pub enum UsageCommand {
    /// Show the requests of an org by credential and day, and the part of its monthly quota that is used
    #[command(after_help = "\
Gateways report usage to 'apexmcp serve', which collects it if its environment has APEXMCP_USAGE_TOKEN.

  apexmcp usage show --org acme-corp
  apexmcp usage show --org acme-corp --from 2026-11-01 --to 2026-11-30 --json")]
    Show {
        /// The name of the org
        #[arg(long)]
        org: String,
        /// The first day in UTC, such as 2026-11-01. The default is the first day of this month
        #[arg(long, value_name = "DATE")]
        from: Option<String>,
        /// The last day in UTC. The default is today
        #[arg(long, value_name = "DATE")]
        to: Option<String>,
    },
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong =
        || format!("{text:?} is not a rate: expected a number and a unit (second, minute, hour, day), such as 600/minute");
    let (requests, per) = text.split_once('/').ok_or_else(wrong)?;
    let requests: u32 = requests.parse().ok().filter(|requests| *requests > 0).ok_or_else(wrong)?;
    let per = Unit::ALL.into_iter().find(|unit| unit.to_string() == per).ok_or_else(wrong)?;
    Ok(Rate { requests: Some(requests.into()), per: Some(per), burst: None })
}

#[derive(Debug, Subcommand)]
pub enum SigningKeyCommand {
    /// Create and publish a signing key. It verifies tokens, but does not sign yet
    Create {
        /// The id of the key in tokens. The default is the current date
        #[arg(long)]
        kid: Option<String>,
    },
    /// List all signing keys
    List,
    /// Sign new tokens with a key from now on
    Use {
        /// The id of the key, as 'apexmcp signing-key list' shows it
        kid: String,
    },
    /// Remove a key that does not sign. Gateways then refuse the tokens that it signed
    Remove {
        /// The id of the key, as 'apexmcp signing-key list' shows it
        kid: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Revoke one token, or all tokens of an OAuth client or of a principal of an identity provider
    #[command(after_help = "\
apexmcp token revoke --org acme-corp --client apx_client_4b7d9e21
apexmcp token revoke --org acme-corp --principal 'acme-corp/idp/https://idp.example#agent-7'")]
    Revoke {
        /// The org at which the tokens are used
        #[arg(long)]
        org: String,
        /// The jti claim of the token, which the gateway or an identity provider issued
        #[arg(long, conflicts_with_all = ["client", "principal", "issued_before"], required_unless_present_any = ["client", "principal"])]
        jti: Option<String>,
        /// Revoke the tokens of this client. The client can get new tokens
        #[arg(long, value_name = "CLIENT_ID", conflicts_with = "principal")]
        client: Option<String>,
        /// Revoke the tokens of this principal of an identity provider, named as in the access log. Tokens that the provider
        /// issues later are accepted
        #[arg(long, value_name = "ORG/idp/ISSUER#SUB")]
        principal: Option<String>,
        /// Revoke only tokens that were issued before this time, such as 2026-11-23T00:00:00Z. The default is now
        #[arg(long, value_parser = Moment::parse, value_name = "TIMESTAMP")]
        issued_before: Option<Moment>,
    },
}

#[derive(Debug, Subcommand)]
pub enum AdminTokenCommand {
    /// Create an admin token and print it. It cannot be shown again
    #[command(after_help = "\
An operator may do everything. An admin changes the keys, clients and identity providers of one org. A viewer reads them.

  apexmcp admin-token create --name terraform --role operator
  apexmcp admin-token create --name portal --role admin --org acme-corp --expires 30d")]
    Create {
        /// A name that says what uses the token. The audit log names it
        #[arg(long)]
        name: String,
        /// What the token allows
        #[arg(long, value_parser = ["operator", "admin", "viewer"])]
        role: String,
        /// The org of an admin or a viewer
        #[arg(long)]
        org: Option<String>,
        /// How long the token is valid from now
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION", default_value = "90d")]
        expires: Duration,
    },
    /// List all admin tokens, including revoked ones
    List,
    /// Revoke an admin token immediately
    Revoke {
        /// The id of the token, such as adm_1f9c
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List the latest changes
    List {
        /// List only the changes of this org
        #[arg(long)]
        org: Option<String>,
        /// Maximum number of changes
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the policy document. It contains the private signing keys
    Export,
    /// Create every record of a policy document that is not in the database yet
    #[command(after_help = "\
FILE is a policy document in JSON. Pass - to read standard input. The import changes and deletes nothing that exists. Either
all records are created, or none. Imported signing keys verify tokens. To sign with one, run: apexmcp signing-key use <kid>

  apexmcp policy import policy.json")]
    Import {
        /// A policy document
        file: PathBuf,
    },
    /// Check a file for errors that a gateway would refuse and for unwise settings. An error sets exit code 1
    #[command(after_help = "\
FILE is a policy document, a plugin configuration, or a configuration of Envoy, Istio or Envoy Gateway that contains one.
A file of Envoy also names the clusters and connectors. Pass - to read standard input.

  apexmcp policy check envoy/envoy.yaml")]
    Check {
        /// A JSON or YAML file
        file: PathBuf,
        /// A cluster of your Envoy, if the file does not name it. Repeat the option for all clusters
        #[arg(long = "cluster", value_name = "NAME")]
        clusters: Vec<String>,
        /// A connector behind your gateway, if the file does not name it. Repeat the option for all connectors
        #[arg(long = "connector", value_name = "ID")]
        connectors: Vec<String>,
        /// Fetch the key set of each identity provider, and warn if it has no key for RS256
        #[arg(long)]
        fetch_keys: bool,
        /// Also fetch key sets over http and from addresses outside of the public Internet
        #[arg(long, requires = "fetch_keys")]
        allow_private_address: bool,
    },
}

const ENCRYPTION: &str = "\
The environment variable APEXMCP_DB_KEY has the master key, or APEXMCP_DB_KEY_FILE names a file that contains it: 32 bytes as 64
hexadecimal digits. Every command and 'apexmcp serve' then need it. Without it, the signing keys cannot be read: keep a copy.

  export APEXMCP_DB_KEY=$(openssl rand -hex 32)
  apexmcp database encrypt

To rotate the master key, set APEXMCP_DB_KEY_PREVIOUS to the old one, APEXMCP_DB_KEY to the new one, and encrypt again.";

#[derive(Debug, Subcommand)]
pub enum DatabaseCommand {
    /// Encrypt the private signing keys in the database with a master key
    #[command(after_help = ENCRYPTION)]
    Encrypt,
    /// Store the private signing keys in the database without encryption
    Decrypt,
    /// Copy all records from the database of --db to an empty one, and compare the two
    #[command(after_help = "\
The copy has the same ids, versions and audit log. Stop everything that changes the old database first: later changes are not
in the copy, and usage is not copied. Gateways continue without a full download when 'apexmcp serve' runs with the copy.

  apexmcp --db apexmcp.db database copy --to postgres://apexmcp@db.example/settings
  apexmcp --db postgres://apexmcp@db.example/settings database copy --to apexmcp.db")]
    Copy {
        /// A file that does not exist, or a database of PostgreSQL without tables of apexmcp
        #[arg(long, value_name = "DATABASE")]
        to: Location,
    },
}

#[derive(Debug, Subcommand)]
pub enum EcdsCommand {
    /// Write the file now and after each change
    Enable {
        /// The filter without the policy, in YAML or JSON
        #[arg(long, value_name = "FILE")]
        template: PathBuf,
        /// The file that Envoy watches. Its folder must exist
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Write the file now, for example after you edited the template
    Write,
    /// Stop writing the file, and leave it as it is
    Disable,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rates_name_a_number_and_a_unit() {
        assert!(parse_rate("600/minute").is_ok_and(|rate| rate.requests == Some(600) && rate.per == Some(Unit::Minute)));
        for wrong in ["600", "600/", "/minute", "0/minute", "600/month", "-1/day", "4294967296/day", "1/Minute", "1 / day"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
