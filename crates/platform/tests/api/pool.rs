//! The pool of connections to PostgreSQL, when those who use it go away.

use std::future::poll_fn;
use std::task::Poll;

use sqlx::{ConnectOptions, PgPool};

#[sqlx::test(migrations = false)]
async fn what_is_written_stays_although_the_begin_before_it_was_dropped_anywhere(db: PgPool) {
    sqlx::query("create table written (steps integer primary key)")
        .execute(&db)
        .await
        .unwrap();
    let url = db.connect_options().to_url_lossy();
    let pool = platform::db::connect(url.as_str(), (1, 1)).await.unwrap();

    for steps in 0.. {
        let (mut beginning, mut left) = (Box::pin(pool.begin()), steps);
        let begun = poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(None);
            }
            left -= 1;
            beginning.as_mut().poll(context).map(Some)
        });
        let has_begun = begun.await.is_some();
        drop(beginning);

        sqlx::query("insert into written values ($1)")
            .bind(steps)
            .execute(&pool)
            .await
            .unwrap();

        let written: i64 = sqlx::query_scalar("select count(*) from written")
            .fetch_one(&db)
            .await
            .unwrap();
        assert_eq!(written, i64::from(steps) + 1, "after {steps} steps");
        if has_begun {
            break;
        }
    }
}
