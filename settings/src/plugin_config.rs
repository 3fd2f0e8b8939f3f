//! The filter's configuration for each kind of mesh, with the policy from `apexmcp serve`.

use clap::ValueEnum;
use serde_json::Value;

use crate::check;
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::output::Answer;
use crate::yaml;

/// The kind of mesh.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// An HTTP filter of Envoy's own configuration.
    Envoy,
    /// A WasmPlugin.
    Istio,
    /// An EnvoyExtensionPolicy.
    EnvoyGateway,
}

/// The configuration of a gateway that clients reach at `origin`.
///
/// # Errors
/// If `origin` is not an origin.
pub fn render(format: Format, origin: &str) -> Result<Answer, Failure> {
    let template = match format {
        Format::Envoy => include_str!("../templates/envoy.yaml"),
        Format::Istio => include_str!("../templates/istio.yaml"),
        Format::EnvoyGateway => include_str!("../templates/envoy-gateway.yaml"),
    };
    // Every JSON string is also a YAML string, so the origin is quoted as JSON.
    let text = template.replace("ORIGIN", &Value::from(origin).to_string()).replace("VERSION", env!("CARGO_PKG_VERSION"));
    let report = check::check(text.as_bytes(), &check::Surroundings::default(), Moment::now())?;
    if let Some(problem) = report.errors.first() {
        return Err(Failure::new(Reason::InvalidArgument, format!("--origin: {}", problem.message)));
    }
    let json = yaml::read_one(&text).map_err(Failure::during(Reason::SystemFailed, "the template"))?;
    Ok(Answer::new(text.trim_end(), json))
}
