//! What the roles of users permit beyond what everybody may: read from PostgreSQL when it is asked for and was not read a moment
//! ago, so that a permission that is taken from a role is gone everywhere within a second. Tokens carry the names of roles alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::warn;

use super::api_key::{Scope, Scopes};

/// How long what was read counts.
const FRESH: Duration = Duration::from_millis(500);
/// How long PostgreSQL may take to tell.
const PATIENCE: Duration = Duration::from_secs(1);
/// Every user has this one, and nothing is permitted by it: nobody is kept waiting to learn so.
const EVERYBODY: &str = "user";

/// The permissions of roles.
#[derive(Debug)]
pub struct Roles {
    db: PgPool,
    /// One reads at a time; the others use what it read.
    read: Mutex<Option<Reading>>,
}

#[derive(Clone, Debug)]
struct Reading {
    at: Instant,
    permissions: Arc<HashMap<String, Scopes>>,
}

impl Roles {
    pub(super) fn new(db: PgPool) -> Self {
        Self {
            db,
            read: Mutex::new(None),
        }
    }

    /// Whether some of these roles permit all of these scopes. Where PostgreSQL does not answer, they permit nothing.
    pub(super) async fn permit(&self, roles: &[String], wanted: &[Scope]) -> bool {
        if wanted.is_empty() || roles.iter().all(|role| role == EVERYBODY) {
            return false;
        }
        let Some(permissions) = self.permissions().await else {
            return false;
        };
        let has = |scope: &Scope| {
            let granted = roles.iter().filter_map(|role| permissions.get(role));
            granted.into_iter().any(|scopes| scopes.permit(*scope))
        };
        wanted.iter().all(has)
    }

    async fn permissions(&self) -> Option<Arc<HashMap<String, Scopes>>> {
        let mut read = self.read.lock().await;
        if let Some(read) = &*read
            && read.at.elapsed() < FRESH
        {
            return Some(read.permissions.clone());
        }
        let at = Instant::now();
        let select = "select name, permissions from platform.role_permissions";
        let rows: Vec<(String, Vec<String>)> =
            match timeout(PATIENCE, sqlx::query_as(select).fetch_all(&self.db)).await {
                Ok(Ok(rows)) => rows,
                failed => {
                    let why = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => format!("PostgreSQL did not answer within {PATIENCE:?}"),
                    };
                    warn!("could not read what roles permit, which is nothing until then: {why}");
                    return None;
                }
            };
        let rows = rows.into_iter();
        let permissions = Arc::new(rows.map(|(role, of)| (role, Scopes(of))).collect());
        *read = Some(Reading { at, permissions });
        read.as_ref().map(|read| read.permissions.clone())
    }
}
