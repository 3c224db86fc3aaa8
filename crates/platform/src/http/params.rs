//! Parameters in path and query.

use axum::extract::FromRequestParts;
use garde::Validate;
use http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::body::valid;
use crate::Problem;

/// Parameters of the path. One that cannot be one of ours names nothing: 404, never 400.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

/// Parameters of the query, read and valid.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    #[expect(clippy::disallowed_types, reason = "ours is built on axum's")]
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0))
            .map_err(|_| Problem::not_found("resource"))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Validate<Context = ()>> FromRequestParts<S>
    for Query<T>
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let object: Map<String, Value> = form_urlencoded::parse(query.as_bytes())
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| (name.into_owned(), Value::String(text.into_owned())))
            .collect();
        // Only the type knows whether `5` is a number or a text: texts first, then what reads as a number or a truth.
        let texts = valid(Value::Object(object.clone()));
        if texts.is_ok() {
            return texts.map(Self);
        }
        typed(object, texts).map(Self)
    }
}

/// Reads again with the fields at fault, and only those, as numbers or truths.
fn typed<T: DeserializeOwned + Validate<Context = ()>>(
    mut object: Map<String, Value>,
    mut outcome: Result<T, Problem>,
) -> Result<T, Problem> {
    let Err(problem) = &outcome else {
        return outcome;
    };
    let mut changed = false;
    for field in problem.fields() {
        if let Some(value) = object.get_mut(field)
            && let Some(text) = value.as_str()
            && let Some(better) = scalar(text)
        {
            *value = better;
            changed = true;
        }
    }
    if changed {
        outcome = valid(Value::Object(object));
    }
    outcome
}

fn scalar(text: &str) -> Option<Value> {
    match text {
        "true" => Some(Value::Bool(true)),
        "false" => Some(Value::Bool(false)),
        _ => serde_json::from_str::<Value>(text)
            .ok()
            .filter(Value::is_number),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, Validate)]
    #[garde(allow_unvalidated)]
    struct Ask {
        search: Option<String>,
        #[garde(range(min = 1))]
        page: Option<u32>,
        unread: Option<bool>,
    }

    async fn read(query: &str) -> Result<Ask, Problem> {
        let (mut parts, ()) = Request::get(format!("/?{query}"))
            .body(())
            .unwrap()
            .into_parts();
        Query::from_request_parts(&mut parts, &())
            .await
            .map(|query| query.0)
    }

    #[tokio::test]
    async fn texts_numbers_and_truths_are_read_as_the_type_says() {
        let ask = read("search=12&page=2&unread=true&page2=&other=x")
            .await
            .unwrap();

        assert_eq!(
            (ask.search.as_deref(), ask.page, ask.unread),
            (Some("12"), Some(2), Some(true))
        );
    }

    #[tokio::test]
    async fn every_fault_of_a_query_is_told() {
        let problem = read("page=0&unread=maybe").await.unwrap_err();

        let mut fields: Vec<_> = problem.fields().collect();
        fields.sort_unstable();
        assert_eq!(fields, ["page", "unread"]);
    }
}
