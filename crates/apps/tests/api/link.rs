//! A link opens one package to whoever has it, until it expires.

use axum::body::Body;
use chrono::TimeDelta;
use sqlx::PgPool;

use crate::app::{TestApp, form};
use testkit::package::opaque;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_link_fetches_its_package_without_signing_in_until_it_expires(db: PgPool) {
    let app = TestApp::start(db).await;
    let (alice, bob) = (app.user(&[]).await, app.user(&[]).await);
    let mut paths = Vec::new();
    for n in 1..=2 {
        let named = [("packageName", format!("com.example.n{n}"))];
        let named = [(named[0].0, named[0].1.as_str())];
        let stored = app
            .upload(&alice, form(Some(&opaque(n)), &named), 4096)
            .await;
        paths.push(format!(
            "/apps/{}",
            stored.expect(201).body["id"].as_str().unwrap()
        ));
    }
    let make = async |user, path: &str, body: &'static str| {
        let json = [("content-type", "application/json")];
        app.send(
            user,
            "POST",
            &format!("{path}/link"),
            &json,
            Body::from(body),
        )
        .await
    };

    make(&bob, &paths[0], "{}").await.expect(404);
    for seconds in [r#"{"expiresIn":59}"#, r#"{"expiresIn":86401}"#] {
        make(&alice, &paths[0], seconds)
            .await
            .refused(400, "VALIDATION_FAILED");
    }
    let link = make(&alice, &paths[0], r#"{"expiresIn":60}"#)
        .await
        .expect(200)
        .body;
    let url = link["url"].as_str().unwrap();

    assert_eq!(
        app.fetch_unsigned(url, &[]).await.expect(200).bytes,
        opaque(1)
    );
    let part = app
        .fetch_unsigned(url, &[("range", "bytes=2-5")])
        .await
        .expect(206);
    assert_eq!(part.bytes, opaque(1)[2..=5]);
    // Of another package, for longer, with another signature, or with none it opens nothing.
    let query = url.split_once('?').unwrap().1;
    let expires: i64 = query.split(['=', '&']).nth(1).unwrap().parse().unwrap();
    let later = url.replace(&expires.to_string(), &(expires + 1).to_string());
    let mut flipped = url.to_owned();
    let last = flipped.pop().unwrap();
    flipped.push(if last == '0' { '1' } else { '0' });
    for bad in [
        format!("{}/download?{query}", paths[1]),
        later,
        flipped,
        format!("{}/download?expires={expires}&signature=00", paths[0]),
        format!("{}/download", paths[0]),
    ] {
        app.fetch_unsigned(&bad, &[])
            .await
            .refused(401, "UNAUTHENTICATED");
    }
    app.platform.clock.advance(TimeDelta::seconds(61));
    app.fetch_unsigned(url, &[])
        .await
        .refused(401, "UNAUTHENTICATED");
}
