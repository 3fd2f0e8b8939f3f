//! Checks that the filter is active in its filter chain. Envoy accepts the mistakes that are found here without any message,
//! and then lets every request pass.

use apexmcp_core::problem::Problem;
use serde_json::{Map, Value};

use crate::json::{each_object, list, plugins_in};
use crate::report::Report;

/// The filters of Envoy that load a module.
const MODULES: [&str; 2] = [".filters.http.wasm.v3.Wasm", ".filters.http.dynamic_modules.v3.DynamicModuleFilter"];

type Judge = fn(&Value) -> bool;

/// The settings that leave only one spelling for each path and header, each with the check of its value.
const SPELLING: [(&str, Judge); 4] = [
    ("normalize_path", is_true),
    ("merge_slashes", is_true),
    ("path_with_escaped_slashes_action", is_action),
    ("common_http_protocol_options.headers_with_underscores_action", is_action),
];

/// Checks every HTTP connection manager in `document`. Returns the number of those that contain the filter.
pub(crate) fn check(document: &Value, report: &mut Report) -> usize {
    let mut found = 0_usize;
    each_object(document, &mut |object| {
        for (index, filter) in object.get("http_filters").into_iter().flat_map(filters) {
            let chain = Chain { manager: object, path: format!("http_filters[{index}]"), name: text(filter, "name") };
            if chain.has_our(filter, report) {
                found = found.saturating_add(1);
                chain.check(filter, report);
            }
        }
    });
    found
}

fn filters(filters: &Value) -> impl Iterator<Item = (usize, &Value)> {
    filters.as_array().into_iter().flatten().enumerate()
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value.get(member).and_then(Value::as_str).unwrap_or_default()
}

fn is_true(value: &Value) -> bool {
    value == &Value::Bool(true)
}

fn is_action(value: &Value) -> bool {
    value.as_str().is_some_and(|action| !["", "ALLOW", "KEEP_UNCHANGED", "IMPLEMENTATION_SPECIFIC_DEFAULT"].contains(&action))
}

struct Chain<'a> {
    manager: &'a Map<String, Value>,
    path: String,
    name: &'a str,
}

impl Chain<'_> {
    /// Whether `filter` is ours. A filter whose configuration comes by ECDS counts as ours if it loads a module.
    fn has_our(&self, filter: &Value, report: &mut Report) -> bool {
        if !plugins_in(filter).is_empty() {
            return true;
        }
        let discovery = filter.get("config_discovery");
        let is_module = |url: &Value| url.as_str().is_some_and(|url| MODULES.iter().any(|module| url.ends_with(module)));
        let by_discovery = discovery.is_some_and(|discovery| list(discovery, "type_urls").any(|(_, url)| is_module(url)));
        if by_discovery {
            let file = discovery.and_then(|discovery| discovery.pointer("/config_source/path_config_source/path"));
            let from = file.and_then(Value::as_str).unwrap_or("a control plane");
            report.warnings.push(Problem {
                path: format!("{}.config_discovery", self.path),
                message: format!("the configuration comes from {from} and was not checked: check that file too"),
            });
        }
        by_discovery
    }

    fn check(&self, filter: &Value, report: &mut Report) {
        let settings = self.settings_of_routes();
        let (mut is_switched_on, mut strangers) = (false, Vec::new());
        for (name, setting) in settings {
            let kind = text(setting, "@type");
            if name != self.name {
                strangers.push(name.as_str());
            } else if kind.ends_with(".Wasm") {
                report.errors.push(Problem {
                    path: format!("typed_per_filter_config.{name}"),
                    message: "is a Wasm message, which Envoy refuses here: use a FilterConfig, or the metadata of the route"
                        .to_owned(),
                });
            } else {
                is_switched_on |= setting.get("disabled") != Some(&Value::Bool(true));
            }
        }
        let is_disabled = filter.get("disabled") == Some(&Value::Bool(true));
        if is_disabled && !is_switched_on {
            self.report_disabled(&strangers, filter, report);
        } else if let Some(routes) = self.manager.get("route_config") {
            crate::routes::check(routes, self.name, is_disabled, &self.known(), report);
        }
        for (setting, is_right) in SPELLING {
            let value = match setting.split_once('.') {
                Some((options, setting)) => self.manager.get(options).and_then(|options| options.get(setting)),
                None => self.manager.get(setting),
            };
            if !value.is_some_and(is_right) {
                let message = "is not set: a request can reach a guarded path or header in another spelling, over a route without the filter";
                report.warnings.push(Problem { path: setting.to_owned(), message: message.to_owned() });
            }
        }
    }

    /// The names of all filters of the chain.
    fn known(&self) -> Vec<&str> {
        self.manager.get("http_filters").into_iter().flat_map(filters).map(|(_, filter)| text(filter, "name")).collect()
    }

    /// The settings of filters in routes and virtual hosts, each with the name of its filter.
    fn settings_of_routes(&self) -> Vec<(&String, &Value)> {
        let mut settings = Vec::new();
        collect_settings(self.manager.get("route_config").unwrap_or(&Value::Null), &mut settings);
        settings
    }

    fn report_disabled(&self, strangers: &[&str], filter: &Value, report: &mut Report) {
        let path = format!("{}.disabled", self.path);
        if !self.manager.contains_key("route_config") {
            let message = "the filter is off on every route that does not enable it, and the routes are not in this file";
            report.warnings.push(Problem { path, message: message.to_owned() });
            return;
        }
        let known = self.known();
        let typo = strangers.iter().find(|name| !known.contains(name));
        let hint = typo.map(|name| format!("; {name:?} is not a filter of this chain")).unwrap_or_default();
        let message = format!(
            "no route enables {:?} with a typed_per_filter_config of that name, so every request passes{hint}",
            self.name
        );
        // A module that comes by ECDS may be another filter than ours.
        let problems = if filter.get("config_discovery").is_some() { &mut report.warnings } else { &mut report.errors };
        problems.push(Problem { path, message });
    }
}

fn collect_settings<'a>(value: &'a Value, settings: &mut Vec<(&'a String, &'a Value)>) {
    match value {
        Value::Object(object) => {
            settings.extend(object.get("typed_per_filter_config").and_then(Value::as_object).into_iter().flatten());
            object.values().for_each(|value| collect_settings(value, settings));
        }
        Value::Array(values) => values.iter().for_each(|value| collect_settings(value, settings)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FILTER_CONFIG: &str = "type.googleapis.com/envoy.config.route.v3.FilterConfig";

    /// A connection manager with the filter disabled, and `settings` on its route.
    fn manager(settings: &Value) -> Value {
        json!({
            "http_filters": [
                {"name": "ours", "disabled": true, "typed_config": {"gateway": {}, "policy": {}}},
                {"name": "router"},
            ],
            "normalize_path": true,
            "merge_slashes": true,
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
            "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
            "route_config": {"virtual_hosts": [{"routes": [{"typed_per_filter_config": settings}]}]},
        })
    }

    fn with(mut manager: Value, pointer: &str, value: Value) -> Value {
        *manager.pointer_mut(pointer).unwrap() = value;
        manager
    }

    fn found(manager: &Value) -> (Vec<String>, Vec<String>) {
        let mut report = Report::default();
        assert_eq!(check(&json!({ "typed_config": manager }), &mut report), 1);
        let lines = |problems: Vec<Problem>| problems.iter().map(Problem::to_string).collect();
        (lines(report.errors), lines(report.warnings))
    }

    #[test]
    fn a_disabled_filter_that_no_route_enables_is_an_error() {
        let on = json!({"@type": FILTER_CONFIG, "config": {}});
        assert_eq!(found(&manager(&json!({ "ours": on }))), (vec![], vec![]));
        let all_pass = "http_filters[0].disabled: no route enables \"ours\" with a typed_per_filter_config of that name, so every request passes";
        for (settings, hint) in [
            (json!({}), ""),
            (json!({"ours": {"@type": FILTER_CONFIG, "disabled": true}}), ""),
            (json!({ "our": on }), "; \"our\" is not a filter of this chain"),
            (json!({ "router": on }), ""),
        ] {
            assert_eq!(found(&manager(&settings)), (vec![format!("{all_pass}{hint}")], vec![]), "{settings}");
        }
        assert_eq!(found(&with(manager(&json!({})), "/http_filters/0/disabled", json!(false))), (vec![], vec![]));

        let mut elsewhere = manager(&json!({}));
        elsewhere.as_object_mut().unwrap().remove("route_config");
        let (errors, warnings) = found(&elsewhere);
        assert!(
            errors.is_empty() && warnings.len() == 1 && warnings[0].contains("the routes are not in this file"),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_wasm_message_on_a_route_is_an_error() {
        let wasm = json!({"ours": {"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"}});
        let (errors, _) = found(&manager(&wasm));
        assert!(errors.iter().any(|error| error.starts_with("typed_per_filter_config.ours: is a Wasm message")), "{errors:?}");
    }

    #[test]
    fn a_missing_normalization_of_paths_or_headers_is_a_warning() {
        let good = manager(&json!({"ours": {"@type": FILTER_CONFIG, "config": {}}}));
        for (pointer, bad) in [
            ("/normalize_path", json!(false)),
            ("/merge_slashes", json!(null)),
            ("/path_with_escaped_slashes_action", json!("KEEP_UNCHANGED")),
            ("/common_http_protocol_options/headers_with_underscores_action", json!("ALLOW")),
        ] {
            let (errors, warnings) = found(&with(good.clone(), pointer, bad));
            let name = pointer.trim_start_matches('/').replace('/', ".");
            assert!(errors.is_empty() && warnings.len() == 1 && warnings[0].starts_with(&name), "{warnings:?}");
        }
    }

    #[test]
    fn a_configuration_that_comes_by_ecds_is_a_warning() {
        let discovered = json!({
            "name": "ours",
            "disabled": true,
            "config_discovery": {
                "config_source": {"path_config_source": {"path": "dist/filter.json"}},
                "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
            },
        });
        let on = json!({"ours": {"@type": FILTER_CONFIG, "config": {}}});
        let (errors, warnings) = found(&with(manager(&json!({})), "/http_filters/0", discovered.clone()));
        assert!(errors.is_empty() && warnings.len() == 2, "it may be another filter: {errors:?} {warnings:?}");
        let (errors, warnings) = found(&with(manager(&on), "/http_filters/0", discovered));
        assert!(errors.is_empty() && warnings.len() == 1 && warnings[0].contains("dist/filter.json"), "{errors:?} {warnings:?}");
        assert_eq!(check(&json!({"http_filters": [{"name": "router"}]}), &mut Report::default()), 0, "there is no such filter");
    }
}
