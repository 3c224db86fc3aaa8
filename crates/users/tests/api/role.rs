//! Roles and what they permit.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;
use sqlx::PgPool;

use crate::app::TestApp;
use crate::manage::{ask, somebody};

const OK: StatusCode = StatusCode::OK;

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_role_lets_its_users_do_what_it_permits_until_it_does_not(db: PgPool) {
    let apps = [TestApp::new(db.clone()).await, TestApp::new(db).await];
    let (_, admin) = somebody(&apps[0], &["super_admin"]).await;
    let body = json!({ "name": "auditor", "permissionIds": ["users:read"] });
    let role = ask(&apps[0], &admin, (Method::POST, "/roles"), body)
        .await
        .expect(StatusCode::CREATED);
    let id = apps[0].register("alice").await;
    let give = json!({ "roleIds": [role.text("/id")] });
    let path = format!("/users/{id}");
    ask(&apps[0], &admin, (Method::PATCH, &path), give)
        .await
        .expect(OK);
    let token = apps[1].login("alice").await.text("/token");

    apps[1].get("/users", &token).await.expect(OK);
    let own = apps[1]
        .get("/menu-permissions/my-permissions", &token)
        .await;
    assert_eq!(own.expect(OK).body, json!(["users:read"]));
    let menus = apps[1].get("/menu-permissions/my-menus", &token).await;
    assert_eq!(menus.expect(OK).body, json!(["users"]));
    // What no permission opens is for admins.
    for (method, path) in [
        (Method::GET, "/roles"),
        (Method::GET, "/permissions"),
        (Method::POST, "/users"),
        (Method::PATCH, "/users/none"),
    ] {
        let body = json!({ "username": "bob", "email": "b@example.com", "password": "Abcdefg1" });
        let told = ask(&apps[1], &token, (method.clone(), path), body).await;
        assert!(
            [403, 404].contains(&told.status.as_u16()),
            "{method} {path}: {}",
            told.body
        );
    }

    let path = format!("/roles/{}/permissions", role.text("/id"));
    let taken = json!({ "permissionIds": ["users:read"] });
    let taken = ask(&apps[0], &admin, (Method::DELETE, &path), taken).await;
    assert_eq!(taken.expect(OK).body["permissions"], json!([]));
    testkit::eventually(
        Duration::from_secs(5),
        "the permission is gone on the other instance",
        async || {
            let told = apps[1].get("/users", &token).await;
            anyhow::ensure!(told.status == StatusCode::FORBIDDEN, "{}", told.status);
            Ok(())
        },
    )
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn roles_that_are_held_or_came_with_the_system_stay(db: PgPool) {
    let app = TestApp::new(db).await;
    let (_, admin) = somebody(&app, &["super_admin"]).await;
    let listed = app.get("/roles?pageSize=50", &admin).await.expect(OK);
    let named = |name: &str| {
        let roles = listed.body["data"].as_array().unwrap();
        let role = roles.iter().find(|role| role["name"] == name).unwrap();
        format!("/roles/{}", role["id"].as_str().unwrap())
    };
    let delete = |path: String| {
        let (app, admin) = (app.clone(), admin.clone());
        async move { app.send(Method::DELETE, &path, Some(&admin), None).await }
    };
    for name in ["super_admin", "admin", "support", "user"] {
        delete(named(name)).await.refused(409, "CONFLICT");
    }
    for (name, body, status) in [
        ("admin", json!({ "permissionIds": [] }), 409),
        ("user", json!({ "permissionIds": ["users:read"] }), 409),
        ("support", json!({ "name": "helpers" }), 409),
        ("support", json!({ "permissionIds": ["devices:read"] }), 200),
        ("support", json!({ "permissionIds": ["roles:write"] }), 400),
        ("user", json!({ "description": "Everybody" }), 200),
    ] {
        let told = ask(&app, &admin, (Method::PATCH, &named(name)), body).await;
        assert_eq!(told.status, status, "{name}: {}", told.body);
    }
    let make = |name: &str| {
        let body = json!({ "name": name });
        let (app, admin) = (app.clone(), admin.clone());
        async move { ask(&app, &admin, (Method::POST, "/roles"), body).await }
    };
    let role = make("helpers").await.expect(StatusCode::CREATED);
    make("helpers").await.refused(409, "CONFLICT");
    make("x").await.refused(400, "VALIDATION_FAILED");
    let id = app.register("alice").await;
    let (path, user) = (
        format!("/roles/{}", role.text("/id")),
        format!("/users/{id}"),
    );
    let give = json!({ "roleIds": [role.text("/id")] });
    ask(&app, &admin, (Method::PATCH, &user), give)
        .await
        .expect(OK);
    delete(path.clone()).await.refused(409, "CONFLICT");
    let renamed = json!({ "name": "others" });
    ask(&app, &admin, (Method::PATCH, &path), renamed)
        .await
        .refused(409, "CONFLICT");
    ask(&app, &admin, (Method::DELETE, &user), json!({}))
        .await
        .expect(OK);
    let permissions = app
        .get("/permissions?pageSize=500", &admin)
        .await
        .expect(OK);
    assert!(permissions.body["total"].as_i64().unwrap() > 20);
    assert_eq!(permissions.body["data"][0]["resource"], "apps");
}
