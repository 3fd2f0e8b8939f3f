//! How many requests an organization or a key may send: a rate, by a token bucket, and a quota of the UTC calendar month.
//!
//! [`subject`] has the limits themselves, and [`document`] their form in the policy. [`local`] counts in the shared data of
//! one Envoy, [`service`] by the rate limit service of a fleet. [`standing`] tells clients how much is left.

pub mod document;
pub mod local;
pub mod service;
pub mod standing;
mod subject;

pub use subject::{Kind, Rate, Subject, Subjects, Unit, of_token_endpoint};
