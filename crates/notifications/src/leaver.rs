//! What users leave behind whose accounts are deleted: where they were called, and what they wanted, is forgotten at once. What
//! they were told goes when its time is over.

use anyhow::Context;
use contracts::Event;
use platform::events::Consumer;
use sqlx::PgConnection;

/// Hears of deleted accounts.
#[derive(Clone, Copy, Debug)]
pub struct Leavers;

impl Consumer for Leavers {
    const NAME: &'static str = "notifications-of-leavers";
    const KINDS: &'static [&'static str] = &["user.deleted"];

    async fn apply(&self, tx: &mut PgConnection, event: &Event) -> anyhow::Result<()> {
        let forget = sqlx::query(
            "-- leaver::forget
            with webhooks as (delete from notifications.webhooks where user_id = $1),
                preferences as (delete from notifications.preferences where user_id = $1),
                allowances as (delete from notifications.allowances where user_id = $1)
            delete from notifications.settings where user_id = $1",
        );
        let forget = forget.bind(&event.user_id).execute(tx).await;
        forget.with_context(|| format!("forgetting what user {} wanted", event.user_id))?;
        Ok(())
    }
}
