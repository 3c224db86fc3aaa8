//! One lock master, asked by itself why a lock was not taken: to the lock client silence, a refusal and a lock in other
//! hands are the same.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, RedisError, cmd};
use tokio::time::timeout;

/// How long a master may take to say why.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a master said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It would give the lock now.
    Free,
    /// Another holds the lock there.
    Held,
    /// Nobody listens at its address.
    Refused,
    /// It did not answer in time.
    TimedOut,
    /// It answers, and does not serve us: its error code, such as `NOAUTH`, `LOADING` or `READONLY`.
    Rejected(String),
    /// The connection failed in another way.
    Failed(String),
}

impl Answer {
    /// Whether the master takes part in a quorum.
    pub fn serves(&self) -> bool {
        matches!(self, Self::Free | Self::Held)
    }

    fn of(error: &RedisError) -> Self {
        if error.is_timeout() {
            Self::TimedOut
        } else if error.is_connection_refusal() {
            Self::Refused
        } else if error.kind() == ErrorKind::AuthenticationFailed {
            Self::Rejected("WRONGPASS".to_owned())
        } else if let Some(code) = error.code() {
            Self::Rejected(code.to_owned())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("answers"),
            Self::Held => f.write_str("held by another"),
            Self::Refused => f.write_str("refused"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Rejected(code) => f.write_str(code),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// A master and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterAnswer {
    /// Host and port, never the user or password.
    pub master: String,
    /// What it said.
    pub answer: Answer,
}

impl fmt::Display for MasterAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.master, self.answer)
    }
}

/// A master, and a connection for questions that is kept for the next one.
#[derive(Clone)]
pub struct Master {
    client: Client,
    connection: Arc<Mutex<Option<MultiplexedConnection>>>,
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Master").field(&self.place()).finish()
    }
}

impl Master {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            connection: Arc::default(),
        }
    }

    /// Asks about a lock.
    pub async fn ask(&self, key: &str) -> MasterAnswer {
        let known = self.connection().take();
        let asking = async {
            // A connection that has gone since says nothing about the master.
            if let Some(mut connection) = known
                && let Ok(answer) = answer(&mut connection, key).await
            {
                return Ok((answer, connection));
            }
            let mut connection = self.client.get_multiplexed_async_connection().await?;
            let answer = answer(&mut connection, key).await?;
            Ok((answer, connection))
        };
        let answer = match timeout(PATIENCE, asking).await {
            Ok(Ok((answer, connection))) => {
                *self.connection() = Some(connection);
                answer
            }
            Ok(Err(error)) => Answer::of(&error),
            Err(_) => Answer::TimedOut,
        };
        MasterAnswer {
            master: self.place(),
            answer,
        }
    }

    fn place(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    fn connection(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(connection: &mut MultiplexedConnection, key: &str) -> Result<Answer, RedisError> {
    let held: Option<Vec<u8>> = cmd("GET").arg(key).query_async(connection).await?;
    if held.is_some() {
        return Ok(Answer::Held);
    }
    // A replica, or a user that may only read, answers a read; a lock is a write.
    let mut write = cmd("SET");
    write.arg(format!("{key}:probe")).arg(1).arg("PX").arg(1);
    write.query_async::<()>(connection).await?;
    Ok(Answer::Free)
}
