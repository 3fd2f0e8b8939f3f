//! The commands: one file per noun of the command line.

mod admin_token;
mod apply;
mod audit;
mod client;
mod completion;
mod database;
mod ecds;
mod init;
mod input;
mod key;
mod limits;
mod org;
mod policy;
mod serve;
mod session;
mod sign_in;
mod signing_key;
mod sso;
mod tables;
mod token;
mod usage;

use crate::access::Actor;
use crate::cli::{Cli, Command};
use crate::clock::Moment;
use crate::failure::Failure;
use crate::output::Answer;
use crate::plugin_config;
use crate::serve::Addresses;
use session::Session;

/// Runs the command of a parsed command line.
///
/// # Errors
/// If the command was refused or failed.
pub fn run(cli: Cli) -> Result<Answer, Failure> {
    let actor = Actor::operator(session::actor(cli.actor)?, Moment::now());
    let session = Session { location: &cli.db, actor, json: cli.json };
    match cli.command {
        Command::Init => init::run(&session),
        Command::Org(command) => org::run(&session, command),
        Command::Key(command) => key::run(&session, command),
        Command::Client(command) => client::run(&session, command),
        Command::Sso(command) => sso::run(&session, command),
        Command::Limits(command) => limits::run(&session, command),
        Command::Usage(command) => usage::run(&session, command),
        Command::Apply(arguments) => apply::run(&session, &arguments),
        Command::SigningKey(command) => signing_key::run(&session, command),
        Command::Token(command) => token::run(&session, command),
        Command::AdminToken(command) => admin_token::run(&session, command),
        Command::Audit(command) => audit::run(&session, command),
        Command::Policy(command) => policy::run(&session, command),
        Command::Database(command) => database::run(&session, command),
        Command::Ecds(command) => ecds::run(&session, command),
        Command::PluginConfig { format, origin } => plugin_config::render(format, &origin),
        Command::Serve { listen, console, origin, sign_in } => {
            serve::run(&session, Addresses { listen, console }, origin, sign_in)
        }
        Command::SignIn { member, org, console } => sign_in::run(&session, member, org, &console),
        Command::Completion { shell } => completion::run(shell),
    }
}
