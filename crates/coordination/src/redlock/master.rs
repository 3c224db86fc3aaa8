//! One lock master, asked by itself: to the lock client silence, a refusal and a lock in other hands are the same.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, cmd};
use tokio::time::timeout;

use crate::script;

/// How long a master may take to say why.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long it may take for one command, or to be connected to.
const ANSWER: Duration = Duration::from_secs(1);

/// Lets a lock live longer for its owner alone.
const RENEW: &str = include_str!("../lease/renew.lua");

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
        let known = self.connection().clone();
        let asking = async {
            // A connection that has gone since says nothing about the master.
            if let Some(mut connection) = known
                && let Ok(answer) = answer(&mut connection, key).await
            {
                return Ok(answer);
            }
            answer(&mut self.connect().await?, key).await
        };
        let answer = match timeout(PATIENCE, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::of(&error),
            Err(_) => Answer::TimedOut,
        };
        if !answer.serves() {
            *self.connection() = None;
        }
        MasterAnswer {
            master: self.place(),
            answer,
        }
    }

    /// Lets a lock live for its whole time again and says whether it is this owner's; `None` without an answer.
    pub async fn renew(&self, key: &[u8], owner: &[u8], ttl: Duration) -> Option<bool> {
        let renewing = async {
            let known = self.connection().clone();
            let mut connection = match known {
                Some(known) => known,
                None => self.connect().await?,
            };
            let mut eval = cmd("EVAL");
            eval.arg(RENEW).arg(1).arg(key);
            eval.arg(owner).arg(script::milliseconds(ttl));
            eval.query_async::<i64>(&mut connection).await
        };
        let answer = timeout(ANSWER, renewing).await;
        match answer {
            Ok(Ok(renewed)) => Some(renewed == 1),
            // The next one is asked over a new connection: this one may be to a machine that is no more.
            Ok(Err(_)) | Err(_) => {
                *self.connection() = None;
                None
            }
        }
    }

    /// Connects anew, for whoever asks next as well.
    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER));
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let connection = connecting.await?;
        *self.connection() = Some(connection.clone());
        Ok(connection)
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
