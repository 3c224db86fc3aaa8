//! The OpenAPI document of all services, merged.

use contracts::Service;
use http::{Method, StatusCode};
use platform::auth::api_key::{Wanted, besides, wanted};
use serde_json::{Map, Value};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
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
    security(("bearer" = []), ("api_key" = [])),
    modifiers(&Proofs)
)]
struct Frame;

/// Names the token or key that most routes want, so that the page can send it.
struct Proofs;

impl Modify for Proofs {
    fn modify(&self, document: &mut Document) {
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some("The access_token that POST /auth/login gives"))
            .build();
        if let Some(components) = document.components.as_mut() {
            components.add_security_scheme("bearer", SecurityScheme::Http(token));
            let told = "The key that POST /api-keys gives; each route names the scope that it wants of one";
            let key = ApiKeyValue::with_description("X-API-Key", told);
            components.add_security_scheme("api_key", SecurityScheme::ApiKey(ApiKey::Header(key)));
        }
    }
}

/// What every service says of its routes, in one document.
pub fn document() -> Value {
    let mut whole = json(&Frame::openapi());
    for (service, mut part) in parts() {
        for (path, item) in &mut part.paths.paths {
            for (method, operation) in operations(item) {
                complete(operation);
                if !is_open(operation) {
                    operation.security = Some(proofs(&method, path));
                }
            }
        }
        merge(&mut whole, service, json(&part));
    }
    whole
}

/// The routes that want a token or a key, as their services know them.
pub fn guarded() -> Vec<(Method, String)> {
    let guarded = guarded_by_service().into_iter();
    guarded.map(|(_, method, path)| (method, path)).collect()
}

/// The same, with the services.
pub fn guarded_by_service() -> Vec<(Service, Method, String)> {
    routes(|operation| !is_open(operation))
}

/// The routes that have their effect once for one `Idempotency-Key`, as their services know them.
pub fn keyed() -> Vec<(Method, String)> {
    let keyed = routes(takes_key).into_iter();
    keyed.map(|(_, method, path)| (method, path)).collect()
}

fn routes(wanted: impl Fn(&Operation) -> bool) -> Vec<(Service, Method, String)> {
    let mut routes = Vec::new();
    for (service, part) in parts() {
        for (path, mut item) in part.paths.paths {
            for (method, operation) in operations(&mut item) {
                if wanted(operation) {
                    routes.push((service, method, path.clone()));
                }
            }
        }
    }
    routes
}

/// What each service says of its routes.
fn parts() -> [(Service, Document); 7] {
    [
        (Service::Gateway, local::openapi()),
        (
            Service::Users,
            users::openapi().merge_from(devices::quota_openapi()),
        ),
        (Service::Devices, devices::openapi()),
        (Service::Apps, apps::openapi()),
        (Service::Media, media::openapi()),
        (Service::Billing, billing::openapi()),
        (Service::Notifications, notifications::openapi()),
    ]
}

/// What a route that is not open wants: a token, or a key with the scope that is named here.
fn proofs(method: &Method, path: &str) -> Vec<SecurityRequirement> {
    let none: [&str; 0] = [];
    let mut proofs = vec![SecurityRequirement::new("bearer", none)];
    if let Wanted::Scope(scope) = wanted(method, path) {
        let scopes = [Some(scope), besides(method, path)];
        let scopes = scopes.into_iter().flatten().map(|scope| scope.to_string());
        proofs.push(SecurityRequirement::new("api_key", scopes));
    }
    proofs
}

fn is_open(operation: &Operation) -> bool {
    let wanted = operation.security.as_ref();
    wanted.is_some_and(|wanted| wanted.contains(&SecurityRequirement::default()))
}

fn takes_key(operation: &Operation) -> bool {
    let mut parameters = operation.parameters.iter().flatten();
    parameters.any(|parameter| match parameter {
        RefOr::T(parameter) => parameter.name == "Idempotency-Key",
        RefOr::Ref(_) => false,
    })
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

fn operations(path: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let all = [
        (Method::GET, &mut path.get),
        (Method::PUT, &mut path.put),
        (Method::POST, &mut path.post),
        (Method::DELETE, &mut path.delete),
        (Method::PATCH, &mut path.patch),
    ];
    all.into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

#[cfg(test)]
mod tests {
    use platform::auth::api_key::is_decided;
    use serde_json::json;

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
                    // Alipay and WeChat Pay are refused in words of their own.
                    let notice = ["alipay", "wechat", "wechatpay"];
                    let is_theirs = path.contains("/webhooks/") || path.contains("/notify/");
                    if is_theirs && notice.iter().any(|name| path.ends_with(name)) {
                        continue;
                    }
                    if status.starts_with(['4', '5']) {
                        let content = &response["content"];
                        let is_problem = content["application/problem+json"].is_object();
                        assert!(is_problem, "{method} {path} {status}: {content}");
                    }
                }
            }
        }
    }

    /// Collects the paths of what must be a text and an object at once, as an inlined enum with a comment of its own comes to be.
    fn contradictions(value: &Value, at: &str, found: &mut Vec<String>) {
        let of = |kind: &str| {
            let all = value["allOf"].as_array().into_iter().flatten();
            all.filter(|one| one["type"] == kind).count()
        };
        if of("object") > 0 && of("string") > 0 {
            found.push(at.to_owned());
        }
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    contradictions(member, &format!("{at}/{name}"), found);
                }
            }
            Value::Array(members) => {
                for (number, member) in members.iter().enumerate() {
                    contradictions(member, &format!("{at}/{number}"), found);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn nothing_must_be_a_text_and_an_object_at_once() {
        let mut found = Vec::new();
        contradictions(&document(), "", &mut found);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn what_an_api_key_may_do_is_decided_for_every_route_and_told() {
        let undecided = guarded();
        let undecided = undecided.iter().filter(|(_, path)| !is_decided(path));
        assert_eq!(
            undecided.collect::<Vec<_>>(),
            Vec::<&(Method, String)>::new()
        );

        let whole = document();
        let told = |path: &str, method: &str| whole["paths"][path][method]["security"].clone();
        let token = json!({ "bearer": [] });
        let key = json!({ "api_key": ["devices:write"] });
        assert_eq!(told("/devices/{id}/start", "post"), json!([token, key]));
        assert_eq!(told("/api-keys", "post"), json!([token]));
        assert_eq!(told("/auth/login", "post"), json!([{}]));
    }

    #[test]
    fn no_open_route_is_shadowed_by_a_guarded_one_beside_it() {
        let mut guarded_paths = matchit::Router::new();
        let paths: std::collections::BTreeSet<String> = guarded()
            .into_iter()
            .map(|(_, path)| nameless(&path))
            .collect();
        for path in paths {
            guarded_paths.insert(path.clone(), path).unwrap();
        }
        let guarded = guarded();

        for (_, part) in parts() {
            for (path, mut item) in part.paths.paths {
                for (method, _) in operations(&mut item).filter(|(_, one)| is_open(one)) {
                    let Ok(met) = guarded_paths.at(&path) else {
                        continue;
                    };
                    let met = met.value;
                    let shadows = |(guarded, path): &(Method, String)| {
                        *guarded == method && nameless(path) == *met
                    };
                    assert!(!guarded.iter().any(shadows), "{met} before {method} {path}");
                }
            }
        }
    }

    /// The path with its parameters named by their places.
    fn nameless(path: &str) -> String {
        let steps = path.split('/').enumerate();
        let steps = steps.map(|(place, step)| match step.starts_with('{') {
            true => format!("{{p{place}}}"),
            false => step.to_owned(),
        });
        steps.collect::<Vec<_>>().join("/")
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

    #[test]
    fn what_takes_an_idempotency_key_says_so() {
        let mut keyed = keyed();
        keyed.sort_by(|one, other| one.1.cmp(&other.1));
        let keyed: Vec<(&str, &str)> = keyed
            .iter()
            .map(|(method, path)| (method.as_str(), path.as_str()))
            .collect();
        // Every handler that takes `Idempotent`: the front door repeats no other request that changes something.
        let expected = [
            "/admin/payments/{id}/refund",
            "/auth/register",
            "/balance/adjust",
            "/balance/consume",
            "/balance/freeze",
            "/balance/recharge",
            "/balance/unfreeze",
            "/billing/orders",
            "/billing/orders/{id}/confirm",
            "/billing/orders/{id}/refund",
            "/coupons",
            "/coupons/claim",
            "/devices",
            "/devices/batch/create",
            "/devices/{id}/snapshots",
            "/invoices",
            "/invoices/{id}/pay",
            "/media/tasks",
            "/notifications",
            "/notifications/broadcast",
            "/notifications/send",
            "/orders",
            "/orders/{id}/confirm",
            "/orders/{id}/refund",
            "/payments",
            "/payments/{id}/refund",
            "/quotas/deduct",
            "/quotas/restore",
            "/roles",
            "/snapshots/device/{id}",
            "/templates/{id}/batch-create",
            "/templates/{id}/create-device",
            "/usage/record",
            "/users",
        ];
        assert_eq!(keyed, expected.map(|path| ("POST", path)));
    }
}
