//! The parts of the OpenAPI document other than the operations.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, InfoBuilder, ObjectBuilder, OpenApi, Ref, RefOr, ResponseBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::problem::{MEDIA_TYPE, Problem, types};

/// Adds the title, the credential and the form of errors.
pub(super) fn complete(mut description: OpenApi) -> OpenApi {
    description.info = InfoBuilder::new()
        .title("The management API of apexmcp")
        .version("1")
        .description(Some("Settings of the ApexMCP gateway: organizations, API keys, OAuth clients and identity providers."))
        .build();
    let mut schema: RefOr<Schema> = Problem::schema();
    if let RefOr::T(Schema::Object(problem)) = &mut schema {
        let kinds = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(types())).build();
        problem.properties.insert("type".to_owned(), RefOr::T(Schema::Object(kinds)));
    }
    let components = description.components.get_or_insert_default();
    components.schemas.insert(Problem::name().into_owned(), schema);
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    components.add_security_scheme("adminToken", bearer);
    description.security = Some(vec![SecurityRequirement::new::<_, [String; 0], String>("adminToken", [])]);
    let problem = || {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
        ResponseBuilder::new().description("Why the request failed (RFC 9457)").content(MEDIA_TYPE, content).build()
    };
    for (path, item) in &mut description.paths.paths {
        let methods = [
            ("get", &mut item.get),
            ("post", &mut item.post),
            ("put", &mut item.put),
            ("patch", &mut item.patch),
            ("delete", &mut item.delete),
        ];
        for (method, operation) in methods.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?))) {
            operation.operation_id = Some(operation_id(method, path));
            for response in operation.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    response.description = operation.summary.clone().unwrap_or_default();
                }
            }
            operation.responses.responses.insert("default".to_owned(), RefOr::T(problem()));
        }
    }
    description
}

/// A name for the operation in generated clients, such as `get_orgs_keys`, and `get_orgs_keys_one` for one record.
fn operation_id(method: &str, path: &str) -> String {
    let parts = path.split('/').skip(3).filter(|part| !part.is_empty() && !part.starts_with('{'));
    let ending = if path.ends_with('}') { "_one" } else { "" };
    parts.fold(method.to_owned(), |id, part| format!("{id}_{}", part.replace('-', "_"))) + ending
}
