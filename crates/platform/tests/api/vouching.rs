//! A gateway's word for a caller: believed for one request and a moment, and given only while who is gone is known.

use axum::Router;
use axum::routing::{get, post};
use chrono::TimeDelta;
use contracts::{Service, SessionId, UserId};
use fred::interfaces::KeysInterface;
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

    async fn present(&self, token: &str) -> Result<Known, AuthError> {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
        let known = self.edge.present(&headers).await?;
        Ok(known.expect("the request bears a token"))
    }

    async fn ask(
        &self,
        token: &str,
        method: Method,
        target: &str,
    ) -> Result<Option<String>, AuthError> {
        let known = self.present(token).await?;
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
            let known = door.present(&token).await;
            known.is_err_and(|error| error == AuthError::Ended)
        })
        .await;
    }
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_door_that_does_not_know_who_is_gone_leaves_the_judgement_to_services(db: PgPool) {
    let redis = PrivateRedis::start().await;
    let platform = testing::beside(db.clone(), &redis.url(), |_| {}).await;
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
        let known = door.present(&token).await;
        known.is_err_and(|error| error == AuthError::Ended)
    })
    .await;

    // PostgreSQL answers nobody who asks for sessions.
    let mut silence = db.begin().await.unwrap();
    sqlx::query("lock table platform.sessions")
        .execute(&mut *silence)
        .await
        .unwrap();
    until("the door gives no word any more", async || {
        let word = door.ask(&other, Method::GET, "/me").await;
        word.is_ok_and(|word| word.is_none())
    })
    .await;
    silence.rollback().await.unwrap();
    door.word(&other, Method::GET, "/me").await;
    redis.thaw();
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn the_door_hears_who_is_gone_while_services_take_every_connection_of_the_pool(db: PgPool) {
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    let small = options.connect_with(db.connect_options().as_ref().clone());
    let small = small.await.unwrap();
    let redis = std::env::var("REDIS_URL").unwrap();
    let platform = testing::beside(small.clone(), &redis, |_| {}).await;
    let (door, alice) = (Door::before(&platform), UserId::new());
    let token = testing::sign_in(&platform, &alice, &[]).await;
    door.word(&token, Method::GET, "/me").await;

    let all = small.acquire().await.unwrap();
    sqlx::query("update platform.sessions set ended_at = $2 where user_id = $1")
        .bind(&alice)
        .bind(platform.clock.now())
        .execute(&db)
        .await
        .unwrap();

    until("the door knows of the end", async || {
        let known = door.present(&token).await;
        known.is_err_and(|error| error == AuthError::Ended)
    })
    .await;
    drop(all);
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_mass_sign_out_of_more_than_a_page_is_known_and_words_go_on(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (door, alice) = (Door::before(&platform), UserId::new());
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(testing::sign_in(&platform, &alice, &[]).await);
    }
    let bob = testing::sign_in(&platform, &UserId::new(), &[]).await;
    for token in &tokens {
        door.word(token, Method::GET, "/me").await;
    }

    // Their ids come before and behind alice's, and all end at the same moment.
    let crowd = "insert into platform.sessions (id, user_id, created_at, expires_at, ended_at)
        select n || '-' || n % 2, 'crowd', $1, $1 + interval '1 day', $1 from generate_series(0, 25000) n";
    let end = "update platform.sessions set ended_at = $1 where user_id = $2";
    let mut tx = db.begin().await.unwrap();
    let now = platform.clock.now();
    sqlx::query(crowd)
        .bind(now)
        .execute(&mut *tx)
        .await
        .unwrap();
    let ending = sqlx::query(end).bind(now).bind(&alice);
    ending.execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();

    for token in &tokens {
        until("the door knows of the end", async || {
            let known = door.present(token).await;
            known.is_err_and(|error| error == AuthError::Ended)
        })
        .await;
    }
    door.word(&bob, Method::GET, "/me").await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn after_a_suspension_whoever_was_known_is_looked_up_anew(db: PgPool) {
    let platform = testing::platform(db.clone()).await;
    let (door, alice) = (Door::before(&platform), UserId::new());
    let token = testing::sign_in(&platform, &alice, &[]).await;
    door.word(&token, Method::GET, "/me").await;

    // It ended while the machine was suspended, too long ago for the end to be read.
    sqlx::query("update platform.sessions set ended_at = $2 where user_id = $1")
        .bind(&alice)
        .bind(platform.clock.now() + TimeDelta::minutes(1))
        .execute(&db)
        .await
        .unwrap();
    // Redis has forgotten by then that it lived.
    let key = format!("session:{}", sessions_of(&db, &alice).await);
    let key = platform.keys.key(&key);
    platform.redis.del::<(), _>(key).await.unwrap();
    platform.clock.advance(TimeDelta::minutes(10));

    assert_eq!(
        door.ask(&token, Method::GET, "/me").await.ok().flatten(),
        None
    );
    until("the door has looked the session up", async || {
        let word = door.ask(&token, Method::GET, "/me").await;
        assert!(!matches!(word, Ok(Some(_))));
        word.is_err_and(|error| error == AuthError::Ended)
    })
    .await;
}

#[sqlx::test(migrator = "platform::db::MIGRATOR")]
async fn a_door_tells_good_tokens_from_others_as_services_do(db: PgPool) {
    let platform = testing::platform(db).await;
    let (app, door) = (app(&platform), Door::before(&platform));
    let token = testing::sign_in(&platform, &UserId::new(), &[]).await;

    for bad in ["", "x", "x.y.z", &format!("{token}x")] {
        let error = door.present(bad).await.unwrap_err();
        let reply = app.get("/me").token(bad).send().await;
        reply.refused(401, "UNAUTHENTICATED");
        assert_eq!(reply.body["detail"], error.to_string());
    }
    door.present(&token).await.unwrap();
    platform.clock.advance(TimeDelta::days(2));
    let error = door.present(&token).await.unwrap_err();
    let reply = app.get("/me").token(&token).send().await;
    reply.refused(401, "TOKEN_EXPIRED");
    assert_eq!(reply.body["detail"], error.to_string());
}
