//! What the check of a file found.

use std::collections::BTreeMap;

use apexmcp_core::problem::Problem;

#[derive(Debug, Default)]
pub struct Report {
    /// A gateway refuses the file, or does something else than the file says.
    pub errors: Vec<Problem>,
    /// A gateway accepts the file, but somebody should look at these settings.
    pub warnings: Vec<Problem>,
    /// Explanations of defaults. They report no problem.
    pub notes: Vec<Problem>,
    /// The key sets that the document names, each with the path of the first provider that names it.
    pub key_sets: BTreeMap<String, String>,
}

impl Report {
    /// Adds the problems that the gateway's own parser found. Variables of Envoy's environment are not set here, so their
    /// absence is only a warning.
    pub(crate) fn take(&mut self, problems: Vec<Problem>) {
        let (of_envoy, errors): (Vec<_>, Vec<_>) = problems
            .into_iter()
            .partition(|problem| problem.path.ends_with("_env") && problem.message.contains("set for the module"));
        self.errors.extend(errors);
        let unchecked =
            |Problem { path, .. }| Problem { path, message: "is not set here, so its value was not checked".to_owned() };
        self.warnings.extend(of_envoy.into_iter().map(unchecked));
    }
}
