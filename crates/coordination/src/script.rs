//! Running Lua scripts: by their digest, loaded again when Redis has forgotten them.

use fred::clients::Pool;
use fred::types::scripts::Script;
use fred::types::{FromValue, MultipleKeys, Value};

use crate::StoreError;

/// Runs a script in one round trip. The Redis client may send it again after a broken connection, so every script
/// of this crate gives the same answer when it runs twice.
pub async fn run<R: FromValue>(
    redis: &Pool,
    script: &Script,
    keys: impl Into<MultipleKeys> + Send,
    arguments: Vec<String>,
    tried: &'static str,
) -> Result<R, StoreError> {
    let arguments = arguments.into_iter().map(Value::from).collect::<Vec<_>>();
    script
        .evalsha_with_reload(redis.next(), keys, arguments)
        .await
        .map_err(StoreError::redis(tried))
}

/// Milliseconds for a script, at least one.
pub fn milliseconds(time: std::time::Duration) -> String {
    time.as_millis().max(1).to_string()
}
