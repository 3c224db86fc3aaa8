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

    #[test]
    fn any_query_is_read_within_its_rules_or_refused_by_field() {
        const WORDS: [&str; 14] = [
            "search=", "page=", "unread=", "code=", "&", "1", "true", "0", "ab", "%", "%2", "+",
            "page=-1", "1e3",
        ];
        bolero::check!()
            .with_iterations(3_000)
            .with_max_len(16)
            .for_each(|bytes: &[u8]| {
                let text = testkit::any::text(bytes, &WORDS);
                match from_texts::<Ask>(form_urlencoded::parse(text.as_bytes())) {
                    Ok(ask) => {
                        assert!(ask.page.is_none_or(|page| page >= 1), "{text}");
                        assert!(ask.code.is_none_or(|code| code.len() >= 2), "{text}");
                        assert!(ask.search.is_none_or(|search| !search.is_empty()), "{text}");
                    }
                    Err(problem) => {
                        let known = ["search", "page", "unread", "code"];
                        assert!(
                            problem.fields().count() > 0
                                && problem.fields().all(|field| known.contains(&field)),
                            "{text}"
                        );
                    }
                }
            });
    }
}
