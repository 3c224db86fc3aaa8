//! Content that two apps have is stored once, for as long as one of them is there.

use axum::body::Body;
use futures::future;
use sqlx::PgPool;

use crate::app::{TestApp, User, form};
use testkit::package::opaque;

async fn upload(app: &TestApp, user: &User, name: &str) -> String {
    let stored = app
        .upload(user, form(Some(&opaque(1)), &[("packageName", name)]), 4096)
        .await;
    format!("/apps/{}", stored.expect(201).body["id"].as_str().unwrap())
}

async fn delete(app: &TestApp, user: &User, path: &str) {
    app.send(user, "DELETE", path, &[], Body::empty())
        .await
        .expect(200);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_last_app_of_a_content_takes_it_along(db: PgPool) {
    let app = TestApp::start(db.clone()).await;
    let (alice, bob) = (app.user(&[]).await, app.user(&[]).await);

    let first = upload(&app, &alice, "com.example.a").await;
    let second = upload(&app, &bob, "com.example.b").await;

    assert_eq!(app.files().len(), 1);
    delete(&app, &alice, &first).await;
    let fetched = app
        .get(&bob, &format!("{second}/download"))
        .await
        .expect(200);
    assert_eq!(fetched.bytes, opaque(1));
    delete(&app, &bob, &second).await;
    assert_eq!(app.files(), Vec::<String>::new());
    let rows: i64 = sqlx::query_scalar("select count(*) from apps.packages")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn no_app_loses_its_content_to_another_that_is_deleted_at_the_same_time(db: PgPool) {
    let app = TestApp::start(db).await;
    let alice = app.user(&[]).await;

    for round in 0..10 {
        let going = upload(&app, &alice, "com.example.going").await;
        let names: Vec<_> = (0..4)
            .map(|n| format!("com.example.r{round}n{n}"))
            .collect();
        let coming = future::join_all(names.iter().map(|name| upload(&app, &alice, name)));
        let (paths, ()) = tokio::join!(coming, delete(&app, &alice, &going));

        for path in &paths {
            let fetched = app
                .get(&alice, &format!("{path}/download"))
                .await
                .expect(200);
            assert_eq!(fetched.bytes, opaque(1));
        }
        assert_eq!(app.files().len(), 1, "round {round}");
        future::join_all(paths.iter().map(|path| delete(&app, &alice, path))).await;
        assert_eq!(app.files().len(), 0, "round {round}");
    }
}
