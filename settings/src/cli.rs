//! The command line, in the shape that users of kubectl and gh know.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::clock::Moment;
use crate::plugin_config::Format;
use crate::records::limits::Rate;

const EXAMPLES: &str = "\
Begin with:
  apexmcp init
  apexmcp org create acme-corp
  apexmcp key create --org acme-corp --name 'ci agent' --expires 90d

Let gateways fetch the policy, and follow each change at once:
  APEXMCP_SETTINGS_TOKEN=... apexmcp serve --listen 127.0.0.1:9902

Exit codes: 0 done; 1 refused or failed, and standard error says why; 2 wrong usage.";

/// Settings of the ApexMCP gateway: orgs, API keys, OAuth clients and identity providers, and the policy made of them.
///
/// Everything is in one SQLite file. A secret is shown once, when it is made; its hash alone is kept. Each change is noted with who
/// made it and when ('apexmcp audit list'), and is in force on every gateway within a second.
#[derive(Debug, Parser)]
#[command(name = "apexmcp", version, propagate_version = true, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// The database
    #[arg(long, global = true, env = "APEXMCP_DB", default_value = "apexmcp.db", value_name = "FILE")]
    pub db: PathBuf,
    /// Print exactly one JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Who is noted for a change; your user name where it is not given
    #[arg(long, global = true, env = "APEXMCP_ACTOR", value_name = "NAME")]
    pub actor: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the database and a first signing key
    Init,
    /// Tenants, to which everything else belongs
    #[command(subcommand)]
    Org(OrgCommand),
    /// Static API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// OAuth clients, which take tokens from the gateway
    #[command(subcommand)]
    Client(ClientCommand),
    /// Customers' own identity providers
    #[command(subcommand)]
    Sso(SsoCommand),
    /// How much an org, or one of its keys, may send
    #[command(subcommand)]
    Limits(LimitsCommand),
    /// The keys that sign the gateway's tokens
    #[command(subcommand, after_help = ROTATION)]
    SigningKey(SigningKeyCommand),
    /// Tokens of the gateway that are to end before they expire
    #[command(subcommand)]
    Token(TokenCommand),
    /// Who changed what, and when
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The document that gateways work by
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// The policy in a file that Envoy watches, instead of a server
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
    /// Serve the policy to gateways, until SIGTERM or Ctrl-C
    #[command(after_help = SERVE)]
    Serve {
        /// Where; port 0: any
        #[arg(long, default_value = "127.0.0.1:9902", value_name = "ADDRESS")]
        listen: SocketAddr,
    },
    /// Print a completion script, such as: source <(apexmcp completion bash)
    Completion {
        /// For this shell
        shell: Shell,
    },
}

const ROTATION: &str = "\
To change the key without refusing a token:
  apexmcp signing-key create            published from now on; wait a minute, gateways' clients keep the old set as long
  apexmcp signing-key use <kid>         signs from now on
  apexmcp signing-key remove <old kid>  when its last token has expired: tokens.ttl later, an hour";

const ECDS: &str = "\
The template is a discovery response with the filter in it: envoy/ecds/filter.yaml. The file is replaced at once or not at all, and
never by a policy that the gateway would refuse. It holds private keys: a new one is yours alone (mode 0600), one that is there
keeps its owner and mode; let Envoy's user read it. Where a command was killed before it wrote the file: apexmcp ecds write.";

const SERVE: &str = "\
GET /v1/policy   the policy, for 'Authorization: Bearer' with the token that the environment variable APEXMCP_SETTINGS_TOKEN
                 holds; with If-None-Match and ?wait=30s it answers when something changed, else 304
GET /healthz     200 while the database can be read
GET /metrics     for Prometheus

The document holds private keys, and it is not encrypted here: listen where only your gateways reach it, or put TLS in front.";

/// Names stand in paths.
#[derive(Debug, Subcommand)]
pub enum OrgCommand {
    /// Make one; clients then call /mcp/<name>
    Create {
        /// 1 to 128 of A-Z a-z 0-9 . _ ~ -
        name: String,
    },
    /// All of them, and how much each has
    List,
    /// One of them
    Show {
        /// Its name
        name: String,
    },
    /// Delete one with all its keys, clients and identity providers
    Delete {
        /// Its name
        name: String,
        /// It cannot be undone
        #[arg(long, required = true)]
        yes: bool,
    },
}

/// Keys are shown once.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make one, and show it once
    #[command(
        after_help = "apexmcp key create --org acme-corp --name 'ci agent' --connector github --connector jira --expires 90d"
    )]
    Create {
        /// Whose it is
        #[arg(long)]
        org: String,
        /// What it is for
        #[arg(long)]
        name: String,
        /// A connector that it may call, and no other; repeat it for more; leave it out for all
        #[arg(long = "connector", value_name = "ID")]
        connectors: Vec<String>,
        /// When it ends by itself, from now: 90d, 12h; never where it is left out
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        expires: Option<Duration>,
    },
    /// All of an org
    List {
        /// Whose
        #[arg(long)]
        org: String,
    },
    /// One of them
    Show {
        /// Such as key_1f9c
        id: String,
    },
    /// End one, at once
    Revoke {
        /// Such as key_1f9c
        id: String,
    },
}

/// Secrets are shown once.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Make one, and show its secret once
    #[command(after_help = "apexmcp client create --org acme-corp --name billing --scope mcp:call:github")]
    Create {
        /// Whose it is
        #[arg(long)]
        org: String,
        /// What it is for
        #[arg(long)]
        name: String,
        /// What its tokens may be granted: mcp:call for every connector, mcp:call:<connector-id> for one; repeat it for more
        #[arg(long = "scope", default_value = "mcp:call", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// Its public keys (a JWK Set), by which it authenticates instead of a secret (private_key_jwt, RFC 7523)
        #[arg(long, value_name = "FILE")]
        jwks: Option<PathBuf>,
    },
    /// All of an org
    List {
        /// Whose
        #[arg(long)]
        org: String,
    },
    /// One of them
    Show {
        /// Such as apx_client_4b7d9e21
        client_id: String,
    },
    /// Give it a second secret; the first stays valid until 'drop-secret'
    RotateSecret {
        /// Such as apx_client_4b7d9e21
        client_id: String,
    },
    /// End the older of its two secrets
    DropSecret {
        /// Such as apx_client_4b7d9e21
        client_id: String,
    },
    /// End one, and with it its tokens, at once
    Revoke {
        /// Such as apx_client_4b7d9e21
        client_id: String,
    },
}

/// Bring your own identity provider.
#[derive(Debug, Subcommand)]
pub enum SsoCommand {
    /// Accept an identity provider's tokens, after a look at what it publishes
    #[command(after_help = "apexmcp sso configure --org acme-corp --issuer https://your-company.okta.com/oauth2/default \\
    --jwks-uri https://your-company.okta.com/oauth2/default/v1/keys --audience apexmcp")]
    Configure {
        /// Whose it is
        #[arg(long)]
        org: String,
        /// The iss claim of its tokens, letter by letter
        #[arg(long, value_name = "URL")]
        issuer: String,
        /// Where its keys are
        #[arg(long, value_name = "URL")]
        jwks_uri: String,
        /// The aud claim that means this gateway; repeat it for more, any one will do
        #[arg(long = "audience", required = true)]
        audiences: Vec<String>,
        /// A scope that is granted to a token without any mcp: scope; repeat the option for more. Without this option, the token
        /// is granted mcp:call, but nothing if any value in it contains mcp:call
        #[arg(long = "default-scope", value_name = "SCOPE")]
        default_scopes: Vec<String>,
        /// Grant nothing to a token without any mcp: scope
        #[arg(long, conflicts_with = "default_scopes")]
        no_default_scope: bool,
        /// A scope that challenges and the resource metadata tell clients to request from this provider; repeat the option for
        /// more. Without this option: mcp:call, or mcp:call:<connector-id> at a connector's own path
        #[arg(long = "client-scope", value_name = "SCOPE")]
        client_scopes: Vec<String>,
        /// Name no scope to clients. For a provider that does not know the mcp scopes and needs no others
        #[arg(long, conflicts_with = "client_scopes")]
        no_client_scope: bool,
        /// Save it though what it publishes is wrong or out of reach
        #[arg(long)]
        force: bool,
        /// Allow addresses that are not of the public Internet, and http: for providers within your own network
        #[arg(long)]
        allow_private_address: bool,
    },
    /// All of an org
    List {
        /// Whose
        #[arg(long)]
        org: String,
    },
    /// Accept its tokens no longer
    Remove {
        /// Whose
        #[arg(long)]
        org: String,
        /// As 'apexmcp sso list' shows it
        #[arg(long, value_name = "URL")]
        issuer: String,
    },
}

/// Whose limits.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct HolderArgs {
    /// All credentials of this org together
    #[arg(long)]
    pub org: Option<String>,
    /// One key, besides its org: the tighter wins
    #[arg(long, value_name = "ID")]
    pub key: Option<String>,
}

/// Who exceeds a limit gets 429.
#[derive(Debug, Subcommand)]
pub enum LimitsCommand {
    /// Replace them
    #[command(after_help = "apexmcp limits set --org acme-corp --rate 600/minute --burst 60 --monthly-quota 1000000")]
    Set {
        /// Whose.
        #[command(flatten)]
        holder: HolderArgs,
        /// Requests in a second, minute, hour or day, such as 600/minute
        #[arg(long, value_parser = parse_rate, required_unless_present = "monthly_quota")]
        rate: Option<Rate>,
        /// How many of them may come at once; as many as --rate says where it is left out
        #[arg(long, requires = "rate", value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..))]
        burst: Option<u32>,
        /// Requests in a calendar month
        #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..))]
        monthly_quota: Option<u32>,
    },
    /// What they are
    Show {
        /// Whose.
        #[command(flatten)]
        holder: HolderArgs,
    },
    /// Have none
    Clear {
        /// Whose.
        #[command(flatten)]
        holder: HolderArgs,
    },
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("{text:?} is not like 600/minute (second, minute, hour, day)");
    let (requests, per) = text.split_once('/').ok_or_else(wrong)?;
    let requests = requests.parse().ok().filter(|requests| *requests > 0).ok_or_else(wrong)?;
    let is_unit = ["second", "minute", "hour", "day"].contains(&per);
    is_unit.then(|| Rate { requests, per: per.to_owned(), burst: None }).ok_or_else(wrong)
}

/// The first of the list signs, all verify.
#[derive(Debug, Subcommand)]
pub enum SigningKeyCommand {
    /// Make another one, which verifies and does not sign yet
    Create {
        /// Its id in tokens; the day where it is left out
        #[arg(long)]
        kid: Option<String>,
    },
    /// All of them
    List,
    /// Sign with this one from now on
    Use {
        /// As 'apexmcp signing-key list' shows it
        kid: String,
    },
    /// Remove one that does not sign; tokens that it signed are refused at once
    Remove {
        /// As 'apexmcp signing-key list' shows it
        kid: String,
    },
}

/// Commands for tokens of the gateway and of an org's identity providers.
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
        /// The client whose tokens end; it can take new ones
        #[arg(long, value_name = "CLIENT_ID", conflicts_with = "principal")]
        client: Option<String>,
        /// Revoke the tokens of this principal of an identity provider, named as in the access log. Tokens that the provider
        /// issues later are accepted
        #[arg(long, value_name = "ORG/idp/ISSUER#SUB")]
        principal: Option<String>,
        /// Those issued before then, such as 2026-11-23T00:00:00Z; until now where it is left out
        #[arg(long, value_parser = Moment::parse, value_name = "TIMESTAMP")]
        issued_before: Option<Moment>,
    },
}

/// The audit log is never changed.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// The latest changes
    List {
        /// Of one org alone
        #[arg(long)]
        org: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
}

/// What gateways work by.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print it; it holds the private signing keys
    Export,
    /// Look for what a gateway would refuse, and for what is unwise; exit code 1 where there is an error
    #[command(after_help = "\
FILE is a policy document, a plugin configuration, or a file with one in it: of Envoy, whose clusters and connectors are then
known, of Istio or of Envoy Gateway. - is standard input.

  apexmcp policy check envoy/envoy.yaml")]
    Check {
        /// JSON or YAML
        file: PathBuf,
        /// A cluster of your Envoy, where the file does not tell; repeat it for all
        #[arg(long = "cluster", value_name = "NAME")]
        clusters: Vec<String>,
        /// A connector behind your gateway, where the file does not tell; repeat it for all
        #[arg(long = "connector", value_name = "ID")]
        connectors: Vec<String>,
        /// Fetch the key set of each identity provider, and warn if it has no key for RS256
        #[arg(long)]
        fetch_keys: bool,
        /// Also fetch key sets from addresses outside of the public Internet, and by http
        #[arg(long, requires = "fetch_keys")]
        allow_private_address: bool,
    },
}

/// A file instead of a server.
#[derive(Debug, Subcommand)]
pub enum EcdsCommand {
    /// Write the file now, and with each change from now on
    Enable {
        /// The filter as it is but for the policy, YAML or JSON
        #[arg(long, value_name = "FILE")]
        template: PathBuf,
        /// What Envoy watches; its folder must be there
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Write the file now, after the template was edited
    Write,
    /// Leave the file as it is from now on
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
        assert!(parse_rate("600/minute").is_ok_and(|rate| rate.requests == 600 && rate.per == "minute"));
        for wrong in ["600", "600/", "/minute", "0/minute", "600/month", "-1/day", "4294967296/day", "1/Minute", "1 / day"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
