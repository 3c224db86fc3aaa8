//! The audit trail of the reconciler, for administrators.

use axum::extract::State;
use platform::Admin;
use platform::http::{Json, Page, PageQuery, Path, Query};

use super::db::{self, Entry};
use crate::{Devices, Error, error::Result, node};

/// Lists what the reconciler found and did on a node, newest first.
#[utoipa::path(get, path = "/nodes/{id}/reconciliation", tag = "nodes", params(("id" = String, Path, description = "The name of the node"), PageQuery), responses((status = 200, body = Page<Entry>), (status = 403), (status = 404)))]
pub async fn list_reconciliations(
    State(state): State<Devices>,
    _: Admin,
    Path(name): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<Entry>>> {
    let mut conn = state.platform.db.acquire().await?;
    if !node::db::exists(&mut conn, &name).await? {
        return Err(Error::NoSuchNode { node: name });
    }
    let (entries, total) = db::entries(&mut conn, &name, page.slice()).await?;
    Ok(Json(Page::new(entries, total, page)))
}
