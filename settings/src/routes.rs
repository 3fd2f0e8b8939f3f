//! Checks that no route goes around the filter. Envoy accepts the mistakes that are found here without any message.

use std::collections::BTreeSet;

use apexmcp_core::problem::Problem;
use serde_json::{Map, Value};

use crate::report::Report;

/// A route of a virtual host.
struct Route<'a> {
    /// Its path in the route configuration.
    path: String,
    value: &'a Value,
    /// Whether the filter judges its requests.
    is_guarded: bool,
}

fn list<'a>(value: &'a Value, member: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    value.get(member).and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn settings(value: &Value) -> Option<&Map<String, Value>> {
    value.get("typed_per_filter_config")?.as_object()
}

/// Checks the routes of a connection manager. `filter` is the name of the filter, and `is_disabled` says whether it is disabled
/// where no route enables it. `known` has the names of all filters.
pub(crate) fn check(routes: &Value, filter: &str, is_disabled: bool, known: &[&str], report: &mut Report) {
    let mut warn = |path: String, message: String| report.warnings.push(Problem { path, message });
    for (index, host) in list(routes, "virtual_hosts") {
        let host_path = format!("virtual_hosts[{index}]");
        let is_guarded_by =
            |value: &Value| settings(value)?.get(filter).map(|setting| setting.get("disabled") != Some(&Value::Bool(true)));
        let by_default = is_guarded_by(host).unwrap_or(!is_disabled);
        let routes: Vec<Route<'_>> = list(host, "routes")
            .map(|(index, value)| {
                let is_guarded = is_guarded_by(value).unwrap_or(by_default);
                Route { path: format!("{host_path}.routes[{index}]"), value, is_guarded }
            })
            .collect();
        let of_host = [(host_path.clone(), host)].into_iter();
        for (path, value) in of_host.chain(routes.iter().map(|route| (route.path.clone(), route.value))) {
            for name in settings(value).into_iter().flat_map(Map::keys).filter(|name| !known.contains(&name.as_str())) {
                let message = "is not the name of a filter in this chain, so Envoy ignores it".to_owned();
                warn(format!("{path}.typed_per_filter_config.{name}"), message);
            }
        }
        let guarded = || routes.iter().filter(|route| route.is_guarded);
        let clusters: BTreeSet<&str> = guarded().flat_map(|route| clusters(route.value)).collect();
        for (index, open) in routes.iter().enumerate().filter(|(_, route)| !route.is_guarded) {
            if let Some(cluster) = self::clusters(open.value).into_iter().find(|cluster| clusters.contains(cluster)) {
                let message = format!(
                    "does not enable {filter:?}, but leads to the cluster {cluster:?} of a guarded route: its requests are not \
                     judged, and may have identity headers that a client made up"
                );
                warn(open.path.clone(), message);
            }
            if let Some(beside) = guarded().find_map(|guarded| beside(open.value, guarded.value)) {
                let message = format!("does not enable {filter:?}, but its path is beside the guarded path {beside}");
                warn(open.path.clone(), message);
            }
            let later = routes.iter().skip(index.saturating_add(1)).filter(|route| route.is_guarded);
            if let Some(hidden) = later.into_iter().find(|later| hides(open.value, later.value)) {
                let message =
                    format!("does not enable {filter:?}, and matches before {}: move it behind that route", hidden.path);
                warn(open.path.clone(), message);
            }
        }
    }
}

/// The clusters to which a route leads.
fn clusters(route: &Value) -> Vec<&str> {
    let Some(action) = route.get("route") else { return Vec::new() };
    let weighted = action.get("weighted_clusters").into_iter().flat_map(|weighted| list(weighted, "clusters"));
    let named = weighted.filter_map(|(_, cluster)| cluster.get("name"));
    action.get("cluster").into_iter().chain(named).filter_map(Value::as_str).collect()
}

/// The path of `guarded`, if the path of `open` is in the same folder, such as that of another organization.
fn beside(open: &Value, guarded: &Value) -> Option<String> {
    let path = |route: &Value, member| route.pointer(&format!("/match/{member}")).and_then(Value::as_str).map(str::to_owned);
    let guarded = path(guarded, "path")?;
    let (folder, _) = guarded.rsplit_once('/')?;
    let open = path(open, "path").or_else(|| path(open, "prefix"))?;
    (!folder.is_empty() && open.strip_prefix(folder)?.starts_with('/') && open != guarded).then_some(guarded)
}

/// Whether every request for the path or the prefix of `later` matches `earlier` first. Only matches without further conditions
/// are compared.
fn hides(earlier: &Value, later: &Value) -> bool {
    let matching = |route: &Value| route.get("match").and_then(Value::as_object).cloned().unwrap_or_default();
    let (earlier, later) = (matching(earlier), matching(later));
    let text = |of: &Map<String, Value>, member: &str| of.get(member).and_then(Value::as_str).map(str::to_owned);
    let is_plain = earlier.len() == 1;
    let Some(wanted) = text(&later, "path").or_else(|| text(&later, "prefix")) else { return false };
    let by_prefix = text(&earlier, "prefix").is_some_and(|prefix| wanted.starts_with(&prefix));
    let by_path = text(&earlier, "path").is_some_and(|path| later.contains_key("path") && path == wanted);
    is_plain && (by_prefix || by_path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn warnings(routes: &Value) -> Vec<String> {
        let mut report = Report::default();
        check(&json!({"virtual_hosts": [{ "routes": routes }]}), "ours", true, &["ours", "cors", "router"], &mut report);
        assert!(report.errors.is_empty());
        report.warnings.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn a_route_around_the_filter_is_a_warning() {
        let on = json!({"ours": {"config": {}}});
        let guarded = json!({"match": {"path": "/mcp/a"}, "route": {"cluster": "mcp"}, "typed_per_filter_config": on});
        let open = json!({"match": {"prefix": "/"}, "route": {"cluster": "site"}});
        assert_eq!(warnings(&json!([guarded, open])), [""; 0]);
        let elsewhere = json!({"match": {"prefix": "/mcpx/b"}, "route": {"cluster": "other"}});
        assert_eq!(warnings(&json!([guarded, elsewhere, open])), [""; 0]);

        let misspelt =
            json!({"match": {"path": "/mcp/b"}, "route": {"cluster": "other"}, "typed_per_filter_config": {"our": {}}});
        let found = warnings(&json!([guarded, misspelt, open]));
        let unknown = "virtual_hosts[0].routes[1].typed_per_filter_config.our: is not the name";
        let beside = "virtual_hosts[0].routes[1]: does not enable \"ours\", but its path is beside the guarded path /mcp/a";
        assert!(matches!(&found[..], [one, other] if one.starts_with(unknown) && other == beside), "{found:?}");

        let forgotten = json!({"match": {"path": "/b"}, "route": {"cluster": "mcp"}});
        let weighted = json!({"match": {"path": "/b"}, "route": {"weighted_clusters": {"clusters": [{"name": "mcp"}]}}});
        for around in [forgotten, weighted] {
            let found = warnings(&json!([guarded, around, open]));
            let expected = "virtual_hosts[0].routes[1]: does not enable \"ours\", but leads to the cluster \"mcp\"";
            assert!(matches!(&found[..], [only] if only.starts_with(expected)), "{found:?}");
        }

        for (matching, is_hidden) in [
            (json!({"prefix": "/"}), true),
            (json!({"prefix": "/mcp"}), true),
            (json!({"path": "/mcp/a"}), true),
            (json!({"path": "/mcp"}), false),
            (json!({"prefix": "/mcp/ab"}), false),
            (json!({"prefix": "/mcp", "headers": []}), false),
        ] {
            let earlier = json!({"match": matching, "route": {"cluster": "site"}});
            let found = warnings(&json!([earlier, guarded]));
            assert_eq!(
                found.iter().any(|warning| warning.contains("matches before virtual_hosts[0].routes[1]")),
                is_hidden,
                "{matching}"
            );
        }
    }

    #[test]
    fn a_route_that_disables_the_filter_is_open() {
        let mut report = Report::default();
        let off = json!({"ours": {"disabled": true}});
        let routes = json!([
            {"match": {"path": "/health"}, "route": {"cluster": "mcp"}, "typed_per_filter_config": off},
            {"match": {"prefix": "/"}, "route": {"cluster": "mcp"}},
        ]);
        check(&json!({"virtual_hosts": [{ "routes": routes }]}), "ours", false, &["ours"], &mut report);
        assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
    }
}
