//! The parts of the OpenAPI document other than the operations.

use utoipa::openapi::schema::{ArrayItems, KnownFormat, SchemaFormat};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, ObjectBuilder, OpenApi, Ref, RefOr, ResponseBuilder, Schema, Type,
};
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
    refine(components);
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

/// The beginning of the name of a list's schema. The name of the record follows.
const LIST: &str = "Items_";

/// Lets generated clients have one type for a record and for the record in a list, and a type of moments.
fn refine(components: &mut Components) {
    for (name, schema) in &mut components.schemas {
        let RefOr::T(Schema::Object(object)) = schema else { continue };
        for (member, property) in &mut object.properties {
            match property {
                RefOr::T(Schema::Array(list)) if member == "items" => {
                    if let Some(record) = name.strip_prefix(LIST) {
                        list.items = ArrayItems::RefOrSchema(Box::new(RefOr::Ref(Ref::from_schema_name(record))));
                    }
                }
                RefOr::T(Schema::Object(moment)) if member.ends_with("_at") || member == "at" => {
                    moment.format = Some(SchemaFormat::KnownFormat(KnownFormat::DateTime));
                }
                _ => {}
            }
        }
    }
}

/// A name for the operation in generated clients, such as `get_orgs_keys`, and `get_orgs_keys_one` for one record.
fn operation_id(method: &str, path: &str) -> String {
    let parts = path.split('/').skip(3).filter(|part| !part.is_empty() && !part.starts_with('{'));
    let ending = if path.ends_with('}') { "_one" } else { "" };
    parts.fold(method.to_owned(), |id, part| format!("{id}_{}", part.replace('-', "_"))) + ending
}
