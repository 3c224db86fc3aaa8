//! What a store can answer instead of a result, told apart by what a caller can do about it.

use std::fmt;

use fred::error::ErrorKind;

/// The store that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The coordinating Redis.
    Redis,
    /// The database that has the last word.
    PostgreSql,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "Redis",
            Self::PostgreSql => "PostgreSQL",
        })
    }
}

/// A store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is away, starting, failing over, too slow or in trouble: trying again later can help. Whether the
    /// command took effect is unknown.
    #[error("{store} is unreachable: could not {tried}")]
    Unreachable {
        /// Which store.
        store: Store,
        /// What was tried, as a verb phrase.
        tried: &'static str,
        /// What the client said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store answered, and refused.
    #[error("{store} refused to {tried}")]
    Refused {
        /// Which store.
        store: Store,
        /// What was tried, as a verb phrase.
        tried: &'static str,
        /// What the store said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Redis did it, but too few of its replicas have confirmed it: a failover could forget it, so it does not count.
    #[error(
        "Redis could not {tried} safely: {confirmed} of {wanted} replicas confirmed it in time; \
        see that they run and follow, or ask for fewer"
    )]
    NotReplicated {
        /// What was tried, as a verb phrase.
        tried: &'static str,
        /// How many replicas had to confirm.
        wanted: u32,
        /// How many did.
        confirmed: u32,
    },
}

impl StoreError {
    /// Wraps an error of the Redis client; `tried` completes "could not …".
    pub fn redis(tried: &'static str) -> impl FnOnce(fred::error::Error) -> Self {
        move |source| {
            let away = match source.kind() {
                ErrorKind::IO
                | ErrorKind::Timeout
                | ErrorKind::Canceled
                | ErrorKind::Routing
                | ErrorKind::Backpressure
                | ErrorKind::Sentinel
                | ErrorKind::Cluster
                | ErrorKind::Tls => true,
                _ => redis_is_not_ready(source.details()),
            };
            Self::new(Store::Redis, away, tried, source.into())
        }
    }

    /// Wraps an error of the database client; `tried` completes "could not …".
    pub fn postgres(tried: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| {
            let refused = match &source {
                sqlx::Error::Database(error) => {
                    error.code().is_some_and(|code| postgres_refuses(&code))
                }
                // The same question would have the same answer.
                sqlx::Error::RowNotFound
                | sqlx::Error::TypeNotFound { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::ColumnIndexOutOfBounds { .. }
                | sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::Encode(_)
                | sqlx::Error::Decode(_) => true,
                _ => false,
            };
            Self::new(Store::PostgreSql, !refused, tried, source.into())
        }
    }

    /// Which store failed.
    pub fn store(&self) -> Store {
        match self {
            Self::Unreachable { store, .. } | Self::Refused { store, .. } => *store,
            Self::NotReplicated { .. } => Store::Redis,
        }
    }

    /// Says whether trying again later can help.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NotReplicated { .. })
    }

    /// A store that did not answer by the caller's own deadline.
    pub fn late(store: Store, tried: &'static str) -> Self {
        Self::new(store, true, tried, "it did not answer in time".into())
    }

    fn new(
        store: Store,
        away: bool,
        tried: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> Self {
        if away {
            Self::Unreachable {
                store,
                tried,
                source,
            }
        } else {
            Self::Refused {
                store,
                tried,
                source,
            }
        }
    }
}

/// Recognises, by its SQLSTATE, an answer that is about the statement and its values: bad data, a violated constraint, bad
/// SQL, an exception that a function raises, a fence. Any other one, such as a deadlock, a full disk or a server that is
/// about to be replaced, is about the state of the server, and passes.
fn postgres_refuses(code: &str) -> bool {
    ["22", "23", "42", "P0", "ZF"]
        .iter()
        .any(|class| code.starts_with(class))
}

/// Recognises the answers of a Redis that is there but cannot serve yet or any more.
fn redis_is_not_ready(answer: &str) -> bool {
    [
        "LOADING",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "READONLY",
        "NOREPLICAS",
        "BUSY ",
    ]
    .iter()
    .any(|code| answer.starts_with(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::STALE_FENCE;

    #[test]
    fn a_store_that_is_away_is_told_apart_from_one_that_refuses() {
        let cases = [
            (ErrorKind::Timeout, "Request timed out.", true),
            (
                ErrorKind::Unknown,
                "LOADING Redis is loading the dataset in memory",
                true,
            ),
            (
                ErrorKind::Unknown,
                "NOREPLICAS Not enough good replicas to write.",
                true,
            ),
            (
                ErrorKind::InvalidArgument,
                "WRONGTYPE Operation against a key",
                false,
            ),
        ];
        for (kind, text, away) in cases {
            let error = StoreError::redis("read a key")(fred::error::Error::new(kind, text));
            assert_eq!(error.is_unreachable(), away, "{text}");
            assert_eq!(error.store(), Store::Redis);
        }

        let error = StoreError::postgres("read a row")(sqlx::Error::PoolTimedOut);
        assert_eq!(
            error.to_string(),
            "PostgreSQL is unreachable: could not read a row"
        );
        assert!(!StoreError::postgres("read a row")(sqlx::Error::RowNotFound).is_unreachable());
        for code in ["22001", "23505", "42P01", "P0001", STALE_FENCE] {
            assert!(postgres_refuses(code), "{code}");
        }
        for code in [
            "08006", "25006", "28P01", "40001", "40P01", "53100", "57P01", "58030", "XX000",
        ] {
            assert!(!postgres_refuses(code), "{code}");
        }
    }
}
