//! Lists as CSV: written by PostgreSQL row by row and passed on as they come, however long they are.

mod column;
mod copy;

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header;
use sqlx::PgPool;
use tokio::sync::Semaphore;

use crate::Problem;

pub use column::{Column, filled, literal};

/// How many exports a replica carries at a time: each keeps a connection of the pool for as long as its client reads.
const AT_ONCE: usize = 2;

/// The places for exports of a service.
#[derive(Clone, Debug)]
pub struct Exports(Arc<Semaphore>);

impl Default for Exports {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Exports {
    /// Streams what `select` finds as CSV with a header, as the file `name`. An export takes a minute at most; one that fails on
    /// its way ends with a broken transfer and never as if it were whole.
    ///
    /// # Errors
    /// 503 where other exports have all places, or PostgreSQL does not begin to answer.
    pub async fn csv(&self, db: &PgPool, name: &str, select: &str) -> Result<Response, Problem> {
        let Ok(permit) = self.0.clone().try_acquire_owned() else {
            return Err(Problem::not_ready(
                "other exports are under way here; try again when they are done",
            ));
        };
        let statement = format!("copy ({select}) to stdout (format csv, header)");
        let rows = copy::begin(db.clone(), statement, permit).await?;
        let headers = [
            (
                header::CONTENT_TYPE,
                "text/csv; charset=utf-8; header=present".to_owned(),
            ),
            (header::CACHE_CONTROL, "no-store".to_owned()),
            (
                header::CONTENT_DISPOSITION,
                format!("attachment; filename=\"{name}.csv\""),
            ),
        ];
        Ok((headers, Body::from_stream(rows)).into_response())
    }
}
