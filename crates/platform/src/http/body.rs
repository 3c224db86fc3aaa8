//! Request bodies: read within bounds, every fault told at once.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use garde::Validate;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::repair;
use crate::Problem;
use crate::problem::FieldFault;

/// A JSON body that was read and is valid, or a JSON reply. An empty body counts as `{}`.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

/// A JSON body that may be a bare array: then it is read as the member `items` of an object.
#[derive(Clone, Copy, Debug)]
pub struct JsonItems<T>(pub T);

/// A body in JSON or as an HTML form, for webhooks.
#[derive(Clone, Copy, Debug)]
pub struct FormOrJson<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Validate<Context = ()>> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        let bytes = bytes(request, state).await?;
        parse(&headers, &bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Validate<Context = ()>> FromRequest<S> for JsonItems<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        let bytes = bytes(request, state).await?;
        let is_array = bytes.trim_ascii_start().starts_with(b"[");
        if is_array {
            let object = [&b"{\"items\":"[..], &bytes, &b"}"[..]].concat();
            return parse(&headers, &object).map(Self);
        }
        parse(&headers, &bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Validate<Context = ()>> FromRequest<S>
    for FormOrJson<T>
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        let bytes = bytes(request, state).await?;
        Self::parse(&headers, &bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Validate<Context = ()>> FormOrJson<T> {
    /// Reads a body of which the raw bytes were needed first, for a signature.
    ///
    /// # Errors
    /// 400 with every field at fault, 415 for another media type.
    pub fn parse(headers: &HeaderMap, bytes: &[u8]) -> Result<T, Problem> {
        if media_type(headers).is_none_or(|kind| kind != "application/x-www-form-urlencoded") {
            return parse(headers, bytes);
        }
        // A client that posts JSON without naming it is still understood (curl -d sends the form type).
        if let Ok(value @ Value::Object(_)) = serde_json::from_slice(bytes) {
            return valid(value);
        }
        from_texts(form_urlencoded::parse(bytes))
    }
}

/// Reads names and texts, of a form or a query. Only the type knows whether `5` is a number or a text: all are texts
/// first, and those that do not fit are read as numbers or truths. An empty text counts as absent.
pub fn from_texts<T: DeserializeOwned + Validate<Context = ()>>(
    pairs: form_urlencoded::Parse<'_>,
) -> Result<T, Problem> {
    let mut object: Map<String, Value> = pairs
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| (name.into_owned(), Value::String(text.into_owned())))
        .collect();
    for reading in [number as fn(&str) -> Option<Value>, truth] {
        let (_, faults) = repair::read::<T>(Value::Object(object.clone()));
        if faults.is_empty() {
            break;
        }
        for fault in faults {
            if let Some(value) = object.get_mut(&fault.field)
                && let Some(text) = scalar_text(value)
                && let Some(better) = reading(&text)
            {
                *value = better;
            }
        }
    }
    valid(Value::Object(object))
}

fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn number(text: &str) -> Option<Value> {
    serde_json::from_str::<Value>(text)
        .ok()
        .filter(Value::is_number)
}

fn truth(text: &str) -> Option<Value> {
    match text {
        "true" | "1" => Some(Value::Bool(true)),
        "false" | "0" => Some(Value::Bool(false)),
        _ => None,
    }
}

/// The whole body, within the bound of the route.
pub async fn bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "TOO_LARGE",
                "the body is larger than 1 MiB",
            ),
            _ => Problem::invalid_field("body", "the body could not be read"),
        })
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(
        text.split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase(),
    )
}

/// Reads a JSON body; an empty one counts as `{}`.
pub fn parse<T: DeserializeOwned + Validate<Context = ()>>(
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<T, Problem> {
    if bytes.trim_ascii().is_empty() {
        return valid(Value::Object(Map::new()));
    }
    let kind = media_type(headers);
    if !kind.is_none_or(|kind| kind == "application/json" || kind.ends_with("+json")) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "BAD_TYPE",
            "the body must be application/json",
        ));
    }
    match serde_json::from_slice(bytes) {
        Ok(value @ Value::Object(_)) => valid(value),
        Ok(_) => Err(Problem::invalid_field("body", "must be a JSON object")),
        Err(error) => Err(Problem::invalid_field(
            "body",
            format!("is not JSON: {error}"),
        )),
    }
}

/// Reads a value and checks its rules; every fault of both kinds is told.
pub fn valid<T: DeserializeOwned + Validate<Context = ()>>(value: Value) -> Result<T, Problem> {
    let (read, mut faults) = repair::read::<T>(value);
    if let Some(read) = read {
        let Err(report) = read.validate() else {
            return if faults.is_empty() {
                Ok(read)
            } else {
                Err(Problem::validation(faults))
            };
        };
        for (path, error) in report.iter().take(repair::MOST_FAULTS) {
            let field = camel_case(&path.to_string());
            if !faults.iter().any(|fault| fault.field == field) {
                faults.push(FieldFault {
                    field,
                    message: error.message().to_owned(),
                });
            }
        }
    }
    Err(Problem::validation(faults))
}

/// Rules name fields as Rust does, clients as JSON does.
fn camel_case(path: &str) -> String {
    let mut field = String::with_capacity(path.len());
    let mut upper = false;
    for character in path.chars() {
        match character {
            '_' => upper = true,
            other if upper => {
                field.extend(other.to_uppercase());
                upper = false;
            }
            other => field.push(other),
        }
    }
    if field.is_empty() {
        "body".to_owned()
    } else {
        field
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize, Validate)]
    #[serde(rename_all = "camelCase")]
    struct Ask {
        #[garde(length(min = 3))]
        user_name: String,
        #[garde(range(min = 1))]
        count: i32,
    }

    #[test]
    fn shape_and_rule_faults_come_together() {
        let problem = valid::<Ask>(json!({ "count": "many", "userName": "ab" })).unwrap_err();

        let body =
            serde_json::to_value(problem.body(crate::Clock::system().now(), None, None)).unwrap();
        assert_eq!(body["statusCode"], 400);
        let fields: Vec<_> = body["details"]
            .as_array()
            .unwrap()
            .iter()
            .map(|fault| fault["field"].clone())
            .collect();
        assert_eq!(fields, ["count", "userName"]);
    }

    #[test]
    fn a_form_and_an_empty_body_are_read_too() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            "application/x-www-form-urlencoded".parse().unwrap(),
        );

        let ask = FormOrJson::<Ask>::parse(&headers, b"userName=abc&count=2").unwrap();

        assert_eq!((ask.user_name.as_str(), ask.count), ("abc", 2));
        let number = FormOrJson::<Ask>::parse(&headers, b"userName=0123&count=2").unwrap();
        assert_eq!(number.user_name, "0123");
        assert!(FormOrJson::<Ask>::parse(&headers, b"").is_err());
    }

    #[test]
    fn any_body_is_read_or_refused_with_the_fields_at_fault() {
        const WORDS: [&str; 16] = [
            "{",
            "}",
            "\"userName\":",
            "\"count\":",
            "\"abc\"",
            "3",
            ",",
            "userName=",
            "count=",
            "&",
            "[",
            "]",
            "true",
            "1e9",
            "%00",
            "abcd",
        ];
        let kinds = [
            "application/json",
            "application/x-www-form-urlencoded",
            "text/plain",
            "a/b+json; c",
        ];
        bolero::check!()
            .with_iterations(2_000)
            .with_max_len(32)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                let kind = HeaderMap::from_iter([(
                    header::CONTENT_TYPE,
                    kinds[bytes.len() % kinds.len()].parse().unwrap(),
                )]);
                for headers in [HeaderMap::new(), kind] {
                    for body in [bytes, text.as_bytes()] {
                        for read in [
                            parse::<Ask>(&headers, body),
                            FormOrJson::<Ask>::parse(&headers, body),
                        ] {
                            match read {
                                Ok(ask) => {
                                    assert!(ask.user_name.len() >= 3 && ask.count >= 1, "{text}")
                                }
                                Err(problem) => {
                                    let named = problem.fields().count();
                                    assert!(named <= 2 * repair::MOST_FAULTS);
                                    assert!(
                                        named > 0
                                            || problem.status()
                                                == StatusCode::UNSUPPORTED_MEDIA_TYPE,
                                        "{text}"
                                    );
                                    assert!(
                                        problem.fields().all(|field| !field.is_empty()),
                                        "{text}"
                                    );
                                }
                            }
                        }
                    }
                }
            });
    }

    #[test]
    fn any_form_says_what_json_of_the_same_would() {
        bolero::check!()
            .with_type::<(String, i32)>()
            .with_iterations(1_000)
            .for_each(|(name, count)| {
                let form = form_urlencoded::Serializer::new(String::new())
                    .append_pair("userName", name)
                    .append_pair("count", &count.to_string())
                    .finish();
                let form = from_texts::<Ask>(form_urlencoded::parse(form.as_bytes()));
                let json = valid::<Ask>(json!({ "userName": name, "count": count }));
                let said =
                    |ask: Result<Ask, Problem>| ask.map(|ask| (ask.user_name, ask.count)).ok();
                assert_eq!(said(form), said(json), "{name:?}");
            });
    }
}
