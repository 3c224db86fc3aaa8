//! A gateway's word for a caller: believed for one request and a moment, and given only while who is gone is known.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use chrono::TimeDelta;
use contracts::{Service, SessionId, UserId};
use http::{HeaderMap, HeaderValue, Method, header};
use platform::auth::{AuthError, Edge, Known, Occasion, SERVICE_HEADER};
use platform::lifecycle::Tasks;
use platform::{Caller, CurrentUser, Platform, testing};
use sqlx::PgPool;

use crate::redis::PrivateRedis;
use crate::support::{App, Call, until};

const WORD: &str = "x-cloudphone-identity";
const ID: HeaderValue = HeaderValue::from_static("request-1");

/// A gateway's view of the callers.
struct Door {
    edge: Edge,
    tasks: Tasks,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

impl Door {
    fn before(platform: &Platform) -> Self {
        let tasks = Tasks::new();
        let edge = Edge::new(platform, &tasks);
        Self { edge, tasks }
    }

    fn present(&self, token: &str) -> Result<Arc<Known>, AuthError> {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
        let known = self.edge.present(&headers)?;
        Ok(known.expect("the request bears a token"))
    }

    async fn ask(
        &self,
        token: &str,
        method: Method,
        target: &str,
    ) -> Result<Option<String>, AuthError> {
        let known = self.present(token)?;
        let occasion = Occasion {
            method: &method,
            target: &target.parse().unwrap(),
            request_id: &ID,
        };
        let word = self.edge.vouch(&known, occasion).await?;
        Ok(word.map(|word| word.to_str().unwrap().to_owned()))
    }

    /// The word for a request, once the door knows enough to give it.
    async fn word(&self, token: &str, method: Method, target: &str) -> String {
        let mut word = None;
        until("the door gives its word", async || {
            word = self.ask(token, method.clone(), target).await.unwrap();
            word.is_some()
        })
        .await;
        word.unwrap()
    }
}

fn app(platform: &Platform) -> App {
    let routes = Router::new()
        .route("/me", get(async |user: CurrentUser| user.id.to_string()))
        .route("/me", post(async |user: CurrentUser| user.id.to_string()))
        .route("/us", get(async |user: CurrentUser| user.id.to_string()))
        .route(
            "/anybody",
            get(async |caller: Caller| caller.user().is_some().to_string()),
        );
    App::new(platform, routes)
}

fn with(call: Call, word: &str) -> Call {
    call.header("x-request-id", ID.to_str().unwrap())
        .header(WORD, word)
}

async fn sessions_of(db: &PgPool, user: &UserId) -> SessionId {
    let id = sqlx::query_scalar("select id from platform.sessions where user_id = $1");
    id.bind(user).fetch_one(db).await.unwrap()
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_word_is_believed_without_token_and_store(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (app, door, alice) = (app(&platform), Door::before(&platform), UserId::new());
    let token = testing::sign_in(&platform, &alice, &["user"]).await;
    let word = door.word(&token, Method::GET, "/me?a=1").await;
    sqlx::query("delete from platform.sessions")
        .execute(&db)
        .await
        .unwrap();

    let reply = with(app.get("/me?a=1"), &word).send().await;

    assert_eq!(reply.text, alice.as_str());
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_word_for_another_request_or_moment_and_a_forged_one_are_refused(db: PgPool) {
    let platform = testing::platform(db).await;
    let (app, door) = (app(&platform), Door::before(&platform));
    let (alice, mallory) = (UserId::new(), UserId::new());
    let token = testing::sign_in(&platform, &alice, &["user"]).await;
    let others = testing::sign_in(&platform, &mallory, &["user"]).await;
    let word = door.word(&token, Method::GET, "/me").await;
    let foreign = door.word(&others, Method::GET, "/me").await;

    let (stem, tag) = word.rsplit_once('.').unwrap();
    let (seconds, identity) = stem.split_once('.').unwrap();
    let (_, other_tag) = foreign.rsplit_once('.').unwrap();
    let credential = platform.auth.service_credential(
        Service::Gateway,
        platform.clock.now(),
        &Method::GET,
        "/me",
    );
    let forged = [
        format!("{stem}.{other_tag}"),
        format!("{}.{identity}.{tag}", seconds.parse::<i64>().unwrap() + 1),
        stem.to_owned(),
        format!("{stem}."),
        "..".to_owned(),
        String::new(),
        credential,
    ];
    let calls = forged.iter().map(|word| with(app.get("/me"), word)).chain([
        with(app.post("/me", ""), &word),
        with(app.get("/us"), &word),
        with(app.get("/me?a=1"), &word),
        app.get("/me")
            .header("x-request-id", "request-2")
            .header(WORD, &word),
        // Nobody known is not let in by what is open to nobody.
        with(app.get("/anybody"), &word),
        // Nor is a service's credential such a word, nor the word a credential.
        app.get("/me").header(SERVICE_HEADER, &word),
    ]);
    for call in calls {
        call.send().await.refused(401, "UNAUTHENTICATED");
    }
    // Who has a token is who that says.
    let reply = with(app.get("/me"), &forged[0]).token(&others).send().await;
    assert_eq!(reply.text, mallory.as_str());
    for seconds in [31, -62] {
        platform.clock.advance(TimeDelta::seconds(seconds));
        with(app.get("/me"), &word)
            .send()
            .await
            .refused(401, "UNAUTHENTICATED");
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_session_that_ends_elsewhere_is_soon_refused_even_where_the_message_is_lost(db: PgPool) {
    let first = testing::platform(db.clone()).await;
    let prefix = first.settings.key_prefix.clone();
    let second = testing::with(db.clone(), |settings| settings.key_prefix = prefix).await;
    let door = Door::before(&second);
    let lose_the_message = async |id: &SessionId| {
        sqlx::query("update platform.sessions set ended_at = $2 where id = $1")
            .bind(id)
            .bind(first.clock.now())
            .execute(&db)
            .await
            .unwrap();
    };
    for lost in [false, true] {
        let alice = UserId::new();
        let token = testing::sign_in(&first, &alice, &[]).await;
        door.word(&token, Method::GET, "/me").await;
        let id = sessions_of(&db, &alice).await;

        if lost {
            lose_the_message(&id).await;
        } else {
            let ended = first.auth.sessions().end(&id, first.clock.now()).await;
            ended.unwrap();
        }

        until("the door knows of the end", async || {
            door.present(&token)
                .is_err_and(|error| error == AuthError::Ended)
        })
        .await;
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_door_that_does_not_know_who_is_gone_leaves_the_judgement_to_services(db: PgPool) {
    let redis = PrivateRedis::start().await;
    // A pool of its own: sqlx waits ten seconds for one of its test pools that the test itself has closed.
    let own = PgPool::connect_with(db.connect_options().as_ref().clone());
    let platform = testing::beside(own.await.unwrap(), &redis.url(), |_| {}).await;
    let door = Door::before(&platform);
    let alice = UserId::new();
    let token = testing::sign_in(&platform, &alice, &[]).await;
    door.word(&token, Method::GET, "/me").await;

    // Without Redis PostgreSQL alone tells who is gone.
    redis.freeze();
    let other = testing::sign_in(&platform, &UserId::new(), &[]).await;
    door.word(&other, Method::GET, "/me").await;
    sqlx::query("update platform.sessions set ended_at = $2 where user_id = $1")
        .bind(&alice)
        .bind(platform.clock.now())
        .execute(&db)
        .await
        .unwrap();
    until("the door knows of the end", async || {
        door.present(&token)
            .is_err_and(|error| error == AuthError::Ended)
    })
    .await;

    platform.db.close().await;
    until("the door gives no word any more", async || {
        let word = door.ask(&other, Method::GET, "/me").await;
        word.is_ok_and(|word| word.is_none())
    })
    .await;
    redis.thaw();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_door_tells_good_tokens_from_others_as_services_do(db: PgPool) {
    let platform = testing::platform(db).await;
    let (app, door) = (app(&platform), Door::before(&platform));
    let token = testing::sign_in(&platform, &UserId::new(), &[]).await;

    for bad in ["", "x", "x.y.z", &format!("{token}x")] {
        let error = door.present(bad).unwrap_err();
        let reply = app.get("/me").token(bad).send().await;
        reply.refused(401, "UNAUTHENTICATED");
        assert_eq!(reply.body["detail"], error.to_string());
    }
    door.present(&token).unwrap();
    platform.clock.advance(TimeDelta::days(2));
    let error = door.present(&token).unwrap_err();
    let reply = app.get("/me").token(&token).send().await;
    reply.refused(401, "TOKEN_EXPIRED");
    assert_eq!(reply.body["detail"], error.to_string());
}
