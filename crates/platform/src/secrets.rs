//! Secrets that a development cluster makes for itself, once, and all its replicas share.

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use sqlx::PgPool;

/// The configured secret, or the one that the cluster's first replica made and stored. Production has no such
/// fall-back: its settings refuse to do without.
///
/// # Errors
/// Where the database does not answer.
pub async fn configured_or_made(
    db: &PgPool,
    name: &str,
    configured: Option<SecretString>,
) -> anyhow::Result<SecretString> {
    if let Some(secret) = configured {
        return Ok(secret);
    }
    let fresh: [u8; 32] = rand::random();
    // The first one wins; everybody reads what stands.
    sqlx::query("insert into platform.generated_secrets (name, value) values ($1, $2) on conflict do nothing")
        .bind(name)
        .bind(STANDARD.encode(fresh))
        .execute(db)
        .await
        .with_context(|| format!("storing the generated secret {name}"))?;
    let value: String =
        sqlx::query_scalar("select value from platform.generated_secrets where name = $1")
            .bind(name)
            .fetch_one(db)
            .await
            .with_context(|| format!("reading the generated secret {name}"))?;
    Ok(value.into())
}
