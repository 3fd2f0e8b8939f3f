//! Which of the two modules the tests run: the wasm module, or with `MODULE=native` the dynamic module. The tests describe the
//! wasm module, and this file turns its configuration into that of the dynamic module.

use serde_json::{Value, json};

const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const NATIVE: &str = "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter";

/// Gives the metrics of a dynamic module their own names, as those of a wasm module have them.
const STRIP_PREFIX: &str = "envoy.reloadable_features.dynamic_modules_strip_custom_stat_prefix";

/// A module of this project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    Wasm,
    Native,
}

impl Module {
    /// The module that the environment variable `MODULE` selects.
    pub fn under_test() -> Self {
        match std::env::var("MODULE").as_deref() {
            Ok("native") => Self::Native,
            Ok("wasm" | "") | Err(_) => Self::Wasm,
            Ok(other) => panic!("MODULE is native or wasm, not {other:?}"),
        }
    }

    /// Whether the tests run the dynamic module, so that a test about a property of wasm is left out.
    pub fn is_native(why_left_out: &str) -> bool {
        let is_native = Self::under_test() == Self::Native;
        if is_native {
            println!("left out for the dynamic module: {why_left_out}");
        }
        is_native
    }

    /// The variables that the environment of Envoy needs for this configuration. A VM has variables of its own.
    pub fn environment(self, written: &Value) -> Vec<(String, String)> {
        let mut found = Vec::new();
        if self == Self::Native {
            find_environment(written, &mut found);
        }
        found
    }

    /// The configuration of Envoy, or a part of it, for this module. It is written for the wasm module.
    pub fn configuration(self, written: &Value) -> Value {
        let mut configuration = written.clone();
        if self == Self::Native {
            make_native(&mut configuration);
            if configuration.get("static_resources").is_some() {
                let layers = &mut configuration["layered_runtime"]["layers"];
                let mut all = layers.as_array().cloned().unwrap_or_default();
                all.push(json!({"name": "module", "static_layer": {STRIP_PREFIX: true}}));
                *layers = json!(all);
            }
        }
        configuration
    }
}

fn find_environment(value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| find_environment(value, found)),
        Value::Object(members) => {
            for (name, value) in members {
                if name == "key_values" {
                    let variables = value.as_object().into_iter().flatten();
                    found.extend(variables.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())));
                }
                find_environment(value, found);
            }
        }
        _ => {}
    }
}

fn make_native(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(make_native),
        Value::Object(members) if members.get("@type").is_some_and(|kind| kind == WASM) => {
            let configuration = &members["config"]["configuration"];
            *value = json!({
                "@type": NATIVE,
                "dynamic_module_config": {"name": "apexmcp_auth", "do_not_close": true},
                "filter_name": "apexmcp_auth",
                "filter_config": configuration,
            });
        }
        Value::Object(members) => members.values_mut().for_each(make_native),
        Value::String(text) if text == WASM => NATIVE.clone_into(text),
        _ => {}
    }
}
