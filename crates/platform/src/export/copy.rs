//! The rows on their way from PostgreSQL to a client.

use std::io;
use std::time::Duration;

use axum::body::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

/// Rows are put together until they are so many bytes.
const PIECE: usize = 32 * 1024;
/// How many pieces may wait for the client.
const WAITING: usize = 4;
/// How long a client may take for one piece.
const PATIENCE: Duration = Duration::from_secs(30);

type Pieces = mpsc::Sender<sqlx::Result<Bytes>>;

/// Begins an export.
///
/// # Errors
/// Where PostgreSQL does not begin to answer. What fails later ends the stream with an error, so that no client takes a part
/// for the whole.
pub(super) async fn begin(
    db: PgPool,
    statement: String,
    permit: OwnedSemaphorePermit,
) -> sqlx::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let (pieces, mut arriving) = mpsc::channel(WAITING);
    // It ends with the stream, which is dropped when the client is gone.
    let mut worker = JoinSet::new();
    worker.spawn(async move {
        let _permit = permit;
        if let Err(error) = pass_on(&db, &statement, &pieces).await {
            warn!("an export was not finished: {error}");
            let _ = timeout(PATIENCE, pieces.send(Err(error))).await;
        }
    });
    let first = arriving.recv().await.transpose()?;
    let rest = stream::unfold(
        (arriving, worker),
        |(mut arriving, mut worker)| async move {
            let piece = match arriving.recv().await {
                Some(piece) => piece.map_err(io::Error::other),
                None => match worker.join_next().await {
                    Some(Err(died)) => Err(io::Error::other(died)),
                    Some(Ok(())) | None => return None,
                },
            };
            Some((piece, (arriving, worker)))
        },
    );
    Ok(stream::iter(first.map(Ok)).chain(rest))
}

async fn pass_on(db: &PgPool, statement: &str, pieces: &Pieces) -> sqlx::Result<()> {
    let mut conn = db.acquire().await?;
    // Whoever leaves in the middle leaves rows on it.
    conn.close_on_drop();
    // It also ends soon after its client is gone, before there is a row to write.
    sqlx::raw_sql(
        "set statement_timeout = '60s'; set client_connection_check_interval = '1s';
        set default_transaction_read_only = on",
    )
    .execute(&mut *conn)
    .await?;
    let mut rows = conn.copy_out_raw(statement).await?;
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        let row = rows.try_next().await?;
        if let Some(row) = &row {
            piece.extend_from_slice(row);
        }
        if piece.len() >= PIECE || (row.is_none() && !piece.is_empty()) {
            let full = Bytes::from(std::mem::replace(&mut piece, Vec::with_capacity(PIECE)));
            match timeout(PATIENCE, pieces.send(Ok(full))).await {
                Ok(Ok(())) => {}
                // The client is gone.
                Ok(Err(_)) => return Ok(()),
                Err(_) => {
                    return Err(sqlx::Error::Io(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "its client did not read for 30 s",
                    )));
                }
            }
        }
        if row.is_none() {
            return Ok(());
        }
    }
}
