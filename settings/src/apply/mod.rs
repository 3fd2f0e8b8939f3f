//! `apexmcp apply`: a file declares records, a plan lists the steps that lead to them, and the steps are carried out.

pub mod file;
mod matching;
pub mod plan;
pub mod run;
