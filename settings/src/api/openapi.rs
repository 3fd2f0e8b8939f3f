//! What the description of the API has beside its operations.

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
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten();
        for operation in operations {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(problem()));
        }
    }
    description
}
