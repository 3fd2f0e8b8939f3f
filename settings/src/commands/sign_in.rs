//! `apexmcp sign-in`

use serde_json::json;

use super::session::Session;
use crate::failure::{Failure, Reason};
use crate::output::Answer;
use crate::records::member;
use crate::records::session::{self, Person};

pub(super) fn run(session: &Session<'_>, email: Option<String>, org: Option<String>, console: &str) -> Result<Answer, Failure> {
    let email = email.map(|email| email.to_ascii_lowercase());
    let org = match (&email, org) {
        (Some(email), None) => {
            let orgs = session.open()?.read(|sql| member::orgs_of(sql, email))?;
            match <[String; 1]>::try_from(orgs) {
                Ok([org]) => org,
                Err(orgs) if orgs.is_empty() => {
                    let line = format!("{email} is a member of no org: add the member in the console, at the page Members");
                    return Err(Failure::new(Reason::NotFound, line));
                }
                Err(orgs) => return Err(Failure::of("org", format!("must be one of: {}", orgs.join(", ")))),
            }
        }
        (_, org) => org.unwrap_or_default(),
    };
    session.change(
        |change, actor| {
            let person = match &email {
                Some(email) => Person::Member { org: &org, email },
                None => Person::Operator(&actor.name),
            };
            session::create_link(change, actor, &person)
        },
        |link| {
            let url = format!("{}/sign-in?link={link}", console.trim_end_matches('/'));
            Answer::new(format!("{url}\n\nThe link is for one use within ten minutes."), json!({ "url": url }))
        },
    )
}
