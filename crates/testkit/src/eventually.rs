//! Waits for a condition instead of sleeping.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Asks until the answer is `Ok`, which it returns; an error says what was seen instead (`anyhow::ensure!`).
///
/// # Panics
/// When the deadline has passed: it says what was awaited and what was seen last.
pub async fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> anyhow::Result<T>,
) -> T {
    let ends = Instant::now() + deadline;
    let mut pause = SHORTEST_PAUSE;
    let mut last = None;
    loop {
        match timeout_at(ends, ask()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(seen)) => last = Some(format!("{seen:#}")),
            Err(_) => last = last.or(Some("no answer at all".to_owned())),
        }
        if Instant::now() + pause >= ends {
            let last = last.unwrap_or_default();
            panic!("in {deadline:?} it did not come about: {what}; seen last: {last}");
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_returns_the_first_value_that_is_right() {
        let mut asked = 0;
        let value = eventually(Duration::from_secs(5), "the third answer", async || {
            asked += 1;
            anyhow::ensure!(asked == 3, "answer {asked}");
            Ok(asked)
        });

        assert_eq!(value.await, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "it did not come about: the impossible; seen last: 1 of 2")]
    async fn it_says_what_was_seen_last() {
        eventually(Duration::from_millis(50), "the impossible", async || {
            anyhow::bail!("1 of 2")
        })
        .await
    }
}
