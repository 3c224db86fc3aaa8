//! Parameters in path and query.

use axum::extract::FromRequestParts;
use garde::Validate;
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::body::from_texts;
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
        from_texts(form_urlencoded::parse(query.as_bytes())).map(Self)
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
        #[garde(inner(length(min = 2)))]
        code: Option<String>,
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
        let problem = read("page=0&unread=maybe&code=1").await.unwrap_err();

        let mut fields: Vec<_> = problem.fields().collect();
        fields.sort_unstable();
        assert_eq!(fields, ["code", "page", "unread"]);
        for (text, unread) in [("1", true), ("0", false), ("false", false)] {
            let ask = read(&format!("unread={text}")).await.unwrap();
            assert_eq!(ask.unread, Some(unread));
        }
    }
}
