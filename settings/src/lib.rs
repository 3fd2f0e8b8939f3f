//! Settings of the gateway. The program `apexmcp` is this library, so that tests can call its parts.
#![allow(missing_docs, reason = "only the program and the tests use this library, and most names say enough")]

pub mod access;
pub mod address;
pub mod advice;
mod api;
pub mod apply;
pub mod chain;
pub mod check;
pub mod cli;
pub mod clock;
pub mod commands;
mod console;
pub mod database;
pub mod document;
pub mod ecds;
pub mod encryption;
pub mod explain;
pub mod failure;
pub mod issuer;
mod json;
pub mod oidc;
pub mod output;
pub mod parts;
pub mod plugin_config;
pub mod records;
pub mod report;
mod routes;
pub mod secret;
pub mod serve;
pub mod service;
pub mod sql;
mod throttle;
mod usage;
mod yaml;
