"""Envoy configurations that are made from envoy/envoy.yaml, so that the shipped file is measured."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
TYPES = "type.googleapis.com/envoy.extensions.filters.http"
# The last segment of a path at which the upstream answers with the forwarded headers. Used once before a measurement.
PROBE = "probe"
RATE_LIMIT_CLUSTER = "ratelimit"


@dataclass(frozen=True, eq=False)
class Listener:
    """A port of Envoy, and the filters before its direct response. Filters are created on demand: some are large."""

    name: str
    filters: Callable[[], list[dict]] = list
    # Returns the body of every answer.
    answer: Callable[[], str] = str
    answer_type: str = "application/json"
    # Whether the filter is ours. Then there is a second listener, with the dynamic module.
    is_ours: bool = False


@cache
def shipped() -> dict:
    return yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text())


def _manager(listener: dict) -> dict:
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def listener_config(listener: Listener, org: str, port: int = 0) -> dict:
    """The shipped listener without its access log. Port 0: Envoy chooses a port."""
    config = copy.deepcopy(shipped()["static_resources"]["listeners"][0])
    config["name"] = listener.name
    config["address"]["socket_address"]["port_value"] = port
    manager = _manager(config)
    del manager["access_log"]
    router = manager["http_filters"][-1]
    manager["http_filters"] = [*listener.filters(), body_buffer(), router]
    answer = listener.answer()
    direct_response = {"status": 200} | ({"body": {"inline_string": answer}} if answer else {})
    json_type = {"header": {"key": "content-type", "value": listener.answer_type}}
    manager["route_config"]["max_direct_response_body_size_bytes"] = max(len(answer), 1)
    manager["route_config"]["virtual_hosts"][0]["routes"] = [
        {"match": {"path": f"/mcp/{org}/{PROBE}"}, "route": {"cluster": "upstream"}},
        {
            "match": {"prefix": "/"},
            "direct_response": direct_response,
            "response_headers_to_add": [json_type] if answer else [],
        },
    ]
    return config


def cluster(name: str, port: int, **options) -> dict:
    endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}
    load_assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}
    return {"name": name, "type": "STATIC", "load_assignment": load_assignment} | options


def rate_limit_cluster(port: int) -> dict:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    http2 = {"@type": f"type.googleapis.com/{options}", "explicit_http_config": {"http2_protocol_options": {}}}
    return cluster(RATE_LIMIT_CLUSTER, port, typed_extension_protocol_options={options: http2})


def bootstrap(upstream_port: int) -> dict:
    """The shipped file without listeners, with its cluster for JWKS documents and the upstream of the benchmark."""
    config = {name: copy.deepcopy(shipped()[name]) for name in ("admin", "overload_manager", "stats_config")}
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    (jwks,) = (each for each in shipped()["static_resources"]["clusters"] if each["name"] == "jwks_http")
    return config | {"static_resources": {"listeners": [], "clusters": [jwks, cluster("upstream", upstream_port)]}}


def module(vm_id: str, plugin: dict) -> dict:
    """Our filter in a VM of its own, so that listeners share no memory."""
    config = copy.deepcopy(_manager(shipped()["static_resources"]["listeners"][0])["http_filters"][0])
    settings = config["typed_config"]["config"]
    settings["vm_config"]["vm_id"] = vm_id
    settings["configuration"] = {
        "@type": "type.googleapis.com/google.protobuf.StringValue",
        "value": json.dumps(plugin),
    }
    return config


def dynamic(http_filter: dict) -> dict:
    """The dynamic module with the configuration of our wasm filter. Returns any other filter unchanged."""
    if not is_module(http_filter):
        return http_filter
    config = http_filter["typed_config"]["config"]
    return {
        "name": http_filter["name"],
        "typed_config": {
            "@type": f"{TYPES}.dynamic_modules.v3.DynamicModuleFilter",
            "dynamic_module_config": {"name": "apexmcp_auth", "do_not_close": True},
            "filter_name": "apexmcp_auth",
            "filter_config": config["configuration"],
        },
    }


def is_module(http_filter: dict) -> bool:
    return "vm_config" in http_filter["typed_config"].get("config", {})


def with_module(http_filter: dict, vm_id: str, path: Path) -> dict:
    """The filter with the module at `path`, in a VM of its own. Returns any other filter unchanged."""
    if not is_module(http_filter):
        return http_filter
    config = copy.deepcopy(http_filter)
    vm = config["typed_config"]["config"]["vm_config"]
    vm["vm_id"] = vm_id
    vm["code"] = {"local": {"filename": str(path.resolve())}}
    return config


def body_buffer() -> dict:
    """Holds the head until the body has arrived, as for an upstream that reads it.

    Without this, a direct response would answer the head, and a filter that reads no body would seem to cost more than
    one that does.
    """
    return {
        "name": "envoy.filters.http.buffer",
        "typed_config": {"@type": f"{TYPES}.buffer.v3.Buffer", "max_request_bytes": 1 << 20},
    }


def api_key_auth(key: str, client: str) -> dict:
    """Envoy's own filter for API keys. It removes the key and forwards the name of the client."""
    return {
        "name": "envoy.filters.http.api_key_auth",
        "typed_config": {
            "@type": f"{TYPES}.api_key_auth.v3.ApiKeyAuth",
            "credentials": [{"key": key, "client": client}],
            "key_sources": [{"header": "x-api-key"}],
            "forwarding": {"header": "x-client-id", "hide_credentials": True},
        },
    }


def jwt_authn(issuer: str, audience: str, jwks: dict, cached: bool) -> list[dict]:
    """Envoy's own filters for tokens. They remove the token, forward its subject and require the scope `mcp:call`."""
    provider = {
        "issuer": issuer,
        "audiences": [audience],
        "local_jwks": {"inline_string": json.dumps(jwks)},
        "forward": False,
        "claim_to_headers": [{"header_name": "x-client-id", "claim_name": "sub"}],
        "payload_in_metadata": "claims",
        "normalize_payload_in_metadata": {"space_delimited_claims": ["scope"]},
    }
    if cached:
        provider["jwt_cache_config"] = {"jwt_cache_size": 4096}
    authentication = {
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": f"{TYPES}.jwt_authn.v3.JwtAuthentication",
            "providers": {"issuer": provider},
            "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "issuer"}}],
        },
    }
    scope = {
        "filter": "envoy.filters.http.jwt_authn",
        "path": [{"key": "claims"}, {"key": "scope"}],
        "value": {"list_match": {"one_of": {"string_match": {"exact": "mcp:call"}}}},
    }
    policy = {"permissions": [{"sourced_metadata": {"metadata_matcher": scope}}], "principals": [{"any": True}]}
    authorization = {
        "name": "envoy.filters.http.rbac",
        "typed_config": {"@type": f"{TYPES}.rbac.v3.RBAC", "rules": {"action": "ALLOW", "policies": {"scope": policy}}},
    }
    return [authentication, authorization]
