//! Settings of the gateway: what `apexmcp` does, as a library that its tests can call.

pub mod address;
pub mod advice;
pub mod chain;
pub mod check;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod database;
pub mod document;
pub mod ecds;
pub mod failure;
pub mod issuer;
pub mod output;
pub mod plugin_config;
pub mod records;
pub mod secret;
pub mod serve;
mod yaml;
