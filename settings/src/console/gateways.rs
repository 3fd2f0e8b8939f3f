//! `Gateways`

use askama::Template;
use axum::extract::State;

use super::frame::Frame;
use super::{Page, Session, Shared, filters, show};
use crate::serve::Gateway;

#[derive(Template)]
#[template(path = "gateways.html")]
struct ListPage {
    frame: Frame,
    gateways: Vec<Gateway>,
    /// The version of the policy that is served.
    version: i64,
}

/// The gateways that get the policy from this server.
pub(super) async fn list(State(console): Shared, session: Session) -> Page {
    let (connected, version) = (console.gateways.clone(), console.gateways.version());
    let (actor, gateways) = console.read(session, move |_, actor| connected.list(actor)).await?;
    Ok(show(&ListPage { frame: Frame::new(&actor, None, "Gateways", "Gateways"), gateways, version }))
}
