//! The OpenAPI document of all services, merged.

use contracts::Service;
use http::{Method, StatusCode};
use serde_json::{Map, Value};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, ContentBuilder, OpenApi as Document, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use crate::local;

const SCHEMAS: &str = "#/components/schemas/";

/// The frame that the services' documents are merged into.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Cloudphone",
        description = "The control plane of a cloud-phone platform."
    ),
    servers((url = "/api"), (url = "/")),
    components(schemas(platform::problem::ProblemBody, platform::problem::FieldFault)),
    security(("bearer" = [])),
    modifiers(&Bearer)
)]
struct Frame;

/// Names the token that most routes want, so that the page can send it.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some("The access_token that POST /auth/login gives"))
            .build();
        if let Some(components) = document.components.as_mut() {
            components.add_security_scheme("bearer", SecurityScheme::Http(token));
        }
    }
}

/// What every service says of its routes, in one document.
pub fn document() -> Value {
    let mut whole = json(&Frame::openapi());
    for (service, mut part) in parts() {
        let operations = part.paths.paths.values_mut().flat_map(operations);
        operations.for_each(complete);
        merge(&mut whole, service, json(&part));
    }
    whole
}

/// The routes that want a token, as their services know them.
pub fn guarded() -> Vec<(Method, String)> {
    let mut guarded = Vec::new();
    let paths = parts().into_iter().flat_map(|(_, part)| part.paths.paths);
    for (path, item) in paths {
        let operations = [
            (Method::GET, item.get),
            (Method::PUT, item.put),
            (Method::POST, item.post),
            (Method::DELETE, item.delete),
            (Method::PATCH, item.patch),
        ];
        for (method, operation) in operations {
            if operation.is_some_and(|operation| !is_open(&operation)) {
                guarded.push((method, path.clone()));
            }
        }
    }
    guarded
}

/// What each service says of its routes.
fn parts() -> [(Service, Document); 7] {
    [
        (Service::Gateway, local::openapi()),
        (Service::Users, users::openapi()),
        (Service::Devices, devices::openapi()),
        (Service::Apps, apps::openapi()),
        (Service::Media, media::openapi()),
        (Service::Billing, billing::openapi()),
        (Service::Notifications, notifications::openapi()),
    ]
}

fn is_open(operation: &Operation) -> bool {
    let wanted = operation.security.as_ref();
    wanted.is_some_and(|wanted| wanted.contains(&SecurityRequirement::default()))
}

fn json(document: &Document) -> Value {
    serde_json::to_value(document).expect("a document is JSON")
}

/// Adds a service's routes and schemas. A schema whose name stands for something else already gets the service's name
/// before its own.
fn merge(whole: &mut Value, service: Service, mut part: Value) {
    let (mut schemas, mut paths) = (
        members(&mut part["components"]["schemas"]),
        part["paths"].take(),
    );
    let taken = &mut whole["components"]["schemas"];
    // A schema that refers to a renamed one is another, too.
    while let Some(name) = schemas
        .iter()
        .find(|(name, schema)| taken.get(*name).is_some_and(|other| other != *schema))
        .map(|(name, _)| name.clone())
    {
        let own = format!("{service}.{name}");
        let schema = schemas.remove(&name).unwrap_or_default();
        schemas.insert(own.clone(), schema);
        schemas
            .values_mut()
            .for_each(|schema| refer(schema, &name, &own));
        refer(&mut paths, &name, &own);
    }
    for (name, schema) in schemas {
        taken[name] = schema;
    }
    for (path, mut item) in members(&mut paths) {
        for (method, operation) in members(&mut item) {
            whole["paths"][&path][method] = operation;
        }
    }
}

fn members(value: &mut Value) -> Map<String, Value> {
    match value.take() {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// Changes each reference to one schema into one to another.
fn refer(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get_mut("$ref")
                && target.strip_prefix(SCHEMAS) == Some(from)
            {
                *target = format!("{SCHEMAS}{to}");
            }
            members
                .values_mut()
                .for_each(|member| refer(member, from, to));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| refer(item, from, to)),
        _ => {}
    }
}

/// Adds what holds for every route: one that is not marked as open refuses a call without a token, every refusal is a
/// problem document, and every response says what it is.
fn complete(operation: &mut Operation) {
    let is_open = is_open(operation);
    let responses = &mut operation.responses.responses;
    let refusal = |text: &str| ResponseBuilder::new().description(text).build().into();
    if !is_open {
        let no_token = || refusal("no token, or one that is no longer good");
        responses.entry("401".to_owned()).or_insert_with(no_token);
    }
    let any = || refusal("any other refusal");
    responses.entry("default".to_owned()).or_insert_with(any);
    for (status, response) in responses {
        let RefOr::T(response) = response else {
            continue;
        };
        let is_refusal = status.starts_with(['4', '5']) || status == "default";
        if is_refusal && is_problem(&response.content) {
            let problem = Ref::from_schema_name("ProblemBody");
            let content = ContentBuilder::new().schema(Some(problem)).build();
            let media_type = "application/problem+json".to_owned();
            response.content.clear();
            response.content.insert(media_type, content.into());
        }
        if response.description.is_empty() {
            let known = status.parse::<StatusCode>().ok();
            let reason = known.and_then(|status| status.canonical_reason());
            response.description = reason.unwrap_or("a response").to_owned();
        }
    }
}

/// Whether a refusal says nothing of its body, or that it is the usual one.
fn is_problem<'a>(content: impl IntoIterator<Item = (&'a String, &'a RefOr<Content>)>) -> bool {
    let usual = format!("{SCHEMAS}ProblemBody");
    content.into_iter().all(|(_, content)| {
        serde_json::to_value(content).is_ok_and(|content| content["schema"]["$ref"] == *usual)
    })
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut path.get,
        &mut path.put,
        &mut path.post,
        &mut path.delete,
        &mut path.patch,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.extend(
                    members
                        .get("$ref")
                        .and_then(Value::as_str)
                        .map(str::to_owned),
                );
                members
                    .values()
                    .for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn it_refers_to_nothing_that_is_not_there_and_says_what_the_specification_wants() {
        let whole = document();
        assert_eq!(whole["openapi"], "3.1.0");

        let mut found = Vec::new();
        references(&whole, &mut found);
        found.retain(|target| {
            let name = target.strip_prefix(SCHEMAS);
            name.is_none_or(|name| whole["components"]["schemas"].get(name).is_none())
        });
        assert_eq!(found, Vec::<String>::new());

        for (path, item) in whole["paths"].as_object().unwrap() {
            let wanted = path.split(['{', '}']).skip(1).step_by(2);
            for (method, operation) in item.as_object().unwrap() {
                let parameters = operation["parameters"].as_array();
                let has = |name: &str| {
                    let mut all = parameters.into_iter().flatten();
                    all.any(|one| one["in"] == "path" && one["name"] == *name)
                };
                assert!(
                    wanted.clone().all(has),
                    "a parameter of {method} {path} is missing"
                );
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let said = response["description"].as_str().unwrap_or_default();
                    assert!(!said.is_empty(), "{method} {path} {status} says nothing");
                    if status.starts_with(['4', '5']) {
                        let content = &response["content"];
                        let is_problem = content["application/problem+json"].is_object();
                        assert!(is_problem, "{method} {path} {status}: {content}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_two_services_call_alike_stays_two() {
        let whole = document();
        let status = |name: &str| whole["components"]["schemas"][name]["enum"].clone();

        assert!(
            status("Status")
                .as_array()
                .unwrap()
                .contains(&"suspended".into())
        );
        assert!(
            status("billing.Status")
                .as_array()
                .unwrap()
                .contains(&"paid".into())
        );
    }
}
