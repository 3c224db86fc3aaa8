//! A service around a test's own database, Redis prefix and loopback address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use contracts::{DeviceId, Service, UserId};
use coordination::PortSet;
use devices::config::RuntimeChoice;
use devices::{Config, Devices, router};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use platform::lifecycle::Tasks;
use platform::{Env, Platform};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

/// How long anything may take before a test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A replica, and what its stores hold.
#[derive(Clone)]
pub struct TestApp {
    pub platform: Platform,
    pub devices: Devices,
    pub config: Config,
    router: Router,
    /// The routes of quotas, which the service of users serves.
    quotas: Router,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
    pub bytes: bytes::Bytes,
}

/// A signed-in caller.
#[derive(Clone)]
pub struct User {
    pub token: String,
    app: TestApp,
}

impl TestApp {
    /// One replica with simulated devices on an address of its own.
    pub async fn new(db: PgPool) -> Self {
        Self::with(db, |_| {}).await
    }

    /// The same with other settings.
    pub async fn with(db: PgPool, change: impl FnOnce(&mut Config)) -> Self {
        Self::around(platform::testing::platform(db).await, change).await
    }

    /// The same where a replica of Redis must confirm what counts, and there is none.
    pub async fn unconfirmed(db: PgPool) -> Self {
        let platform = platform::testing::with(db, |settings| settings.redis_wait_replicas = 1);
        Self::around(platform.await, |_| {}).await
    }

    async fn around(platform: Platform, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::from_env(&mut Env::of([]));
        config.runtime = RuntimeChoice::Simulated;
        let [.., a, b] = uuid_bytes();
        config.node_address = IpAddr::V4(Ipv4Addr::new(127, 77, a, b.clamp(1, 254)));
        // Most tests are about something else.
        config
            .quota
            .0
            .values_mut()
            .for_each(|limit| *limit = devices::quota::UNLIMITED);
        change(&mut config);
        Self::on(&platform, config).await
    }

    /// A further replica on the same stores.
    pub async fn another(&self) -> Self {
        Self::on(&self.platform, self.config.clone()).await
    }

    /// A further replica with connections of its own.
    pub async fn elsewhere(&self, db: PgPool) -> Self {
        let prefix = self.platform.settings.key_prefix.clone();
        let platform = platform::testing::with(db, |settings| settings.key_prefix = prefix).await;
        Self::on(&platform, self.config.clone()).await
    }

    /// What its containers bear.
    pub async fn cluster(&self) -> String {
        sqlx::query_scalar("select id from platform.cluster")
            .fetch_one(&self.platform.db)
            .await
            .unwrap()
    }

    /// A replica on the stores of a platform, with these settings.
    pub async fn on(platform: &Platform, config: Config) -> Self {
        let devices = Devices::new(platform, config.clone()).await.unwrap();
        let router =
            platform::http::service(platform, Service::Devices, router(devices.clone())).router;
        let quotas = devices::quota_router(devices.quotas().clone());
        let quotas = platform::http::service(platform, Service::Users, quotas).router;
        Self {
            platform: platform.clone(),
            devices,
            config,
            router,
            quotas,
        }
    }

    /// Serves this replica on a port of its own until the tasks stop.
    pub async fn serve(&self, tasks: &Tasks) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = self.router.clone();
        let service = service.into_make_service_with_connect_info::<SocketAddr>();
        tasks.spawn("tests.serve", async move {
            Ok(axum::serve(listener, service).await?)
        });
        address
    }

    /// Asks with an API key from anywhere.
    pub async fn post_with_key(&self, key: &str, path: &str) -> Answer {
        let request = Request::builder().header("x-api-key", key);
        let from: SocketAddr = "203.0.113.9:4711".parse().unwrap();
        self.send(request, from, "POST", path, Value::Null).await
    }

    /// Asks as a service with its credential.
    pub async fn post_as_service(&self, credential: &str, path: &str, body: Value) -> Answer {
        let request = Request::builder().header(platform::auth::SERVICE_HEADER, credential);
        let from: SocketAddr = "203.0.113.9:4711".parse().unwrap();
        self.send(request, from, "POST", path, body).await
    }

    /// Tells the service what another one did.
    pub async fn hear(&self, event: &contracts::Event) {
        let mut tx = self.platform.db.begin().await.unwrap();
        let grants = devices::quota::grant::Grants;
        platform::events::Consumer::apply(&grants, &mut tx, event)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    /// Signs somebody in.
    pub async fn user(&self, name: &str, roles: &[&str]) -> User {
        let id: UserId = name.parse().unwrap();
        let token = platform::testing::sign_in(&self.platform, &id, roles).await;
        User {
            token,
            app: self.clone(),
        }
    }

    /// The same caller at this replica.
    pub fn as_user(&self, user: &User) -> User {
        User {
            app: self.clone(),
            ..user.clone()
        }
    }

    /// Sends a request without a token from an address.
    pub async fn anonymous(&self, from: &str, method: &str, path: &str, body: Value) -> Answer {
        let from: SocketAddr = format!("{from}:4711").parse().unwrap();
        self.send(Request::builder(), from, method, path, body)
            .await
    }

    async fn send(
        &self,
        request: http::request::Builder,
        from: SocketAddr,
        method: &str,
        path: &str,
        body: Value,
    ) -> Answer {
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        let mut request = request
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        request.extensions_mut().insert(ConnectInfo(from));
        let router = match path.starts_with("/quotas") {
            true => &self.quotas,
            false => &self.router,
        };
        let response = router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            bytes,
        }
    }

    /// Carries out what is due.
    pub async fn run_operations(&self) {
        self.devices.run_operations().await.unwrap();
    }

    /// Carries out what is due, while another replica hosts what it hosts.
    pub async fn run_operations_beside(&self, host: &Self) {
        let hosting = async {
            loop {
                host.host().await;
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { () = self.run_operations() => {}, () = hosting => {} }
    }

    /// Does one step of hosting.
    pub async fn host(&self) {
        self.devices
            .runtimes()
            .simulated
            .keep_hosting()
            .await
            .unwrap();
    }

    /// Whether somebody listens on a port of the node.
    pub async fn answers(&self, port: u16) -> bool {
        TcpStream::connect((self.config.node_address, port))
            .await
            .is_ok()
    }

    /// The kinds and contents of all events so far, in their order.
    pub async fn events(&self) -> Vec<Value> {
        sqlx::query_scalar("select event from platform.outbox order by id")
            .fetch_all(&self.platform.db)
            .await
            .unwrap()
    }

    /// Forgets everything that this test has in Redis.
    pub async fn lose_redis(&self) {
        let script = "local keys = redis.call('KEYS', ARGV[1])
            for _, key in ipairs(keys) do redis.call('DEL', key) end return #keys";
        let pattern = self.platform.keys.key("*");
        let _: i64 = fred::interfaces::LuaInterface::eval(
            &self.platform.redis,
            script,
            Vec::<String>::new(),
            vec![pattern],
        )
        .await
        .unwrap();
    }
}

impl User {
    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, body).await
    }

    pub async fn send(&self, method: &str, path: &str, body: Value) -> Answer {
        self.send_with(method, path, body, None).await
    }

    pub async fn send_with(
        &self,
        method: &str,
        path: &str,
        body: Value,
        key: Option<&str>,
    ) -> Answer {
        let mut request =
            Request::builder().header("authorization", format!("Bearer {}", self.token));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        // A signed-in caller may come from anywhere.
        let from: SocketAddr = "203.0.113.9:4711".parse().unwrap();
        self.app.send(request, from, method, path, body).await
    }

    /// Creates a device and gives the reply.
    pub async fn create(&self, body: Value) -> Value {
        let answer = self.post("/devices", body).await;
        answer.expect(StatusCode::CREATED).body
    }

    /// Creates a device that runs.
    pub async fn running(&self) -> Value {
        let device = self.create(json!({ "name": "phone" })).await;
        self.app.run_operations().await;
        self.device(&device).await
    }

    /// The device as it is now.
    pub async fn device(&self, device: &Value) -> Value {
        let path = format!("/devices/{}", id(device));
        self.get(&path).await.expect(StatusCode::OK).body
    }

    /// Its status now.
    pub async fn status(&self, device: &Value) -> String {
        text(&self.device(device).await, "status")
    }

    /// Does something with a device.
    pub async fn act(&self, device: &Value, action: &str) -> Answer {
        let path = format!("/devices/{}/{action}", id(device));
        self.post(&path, Value::Null).await
    }

    /// Deletes a device.
    pub async fn delete(&self, device: &Value) -> Answer {
        let path = format!("/devices/{}", id(device));
        self.send("DELETE", &path, Value::Null).await
    }
}

impl Answer {
    #[track_caller]
    pub fn expect(self, status: StatusCode) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    #[track_caller]
    pub fn refused(self, status: StatusCode, code: &str) -> Self {
        assert_eq!(
            (self.status, self.body["error"].as_str()),
            (status, Some(code)),
            "{}",
            self.body
        );
        self
    }
}

pub fn id(device: &Value) -> DeviceId {
    text(device, "id").parse().unwrap()
}

pub fn text(object: &Value, field: &str) -> String {
    object[field].as_str().unwrap_or_default().to_owned()
}

pub fn ports(device: &Value) -> PortSet {
    let port = |field: &str| u16::try_from(device[field].as_u64().unwrap()).unwrap();
    PortSet {
        adb: port("adbPort"),
        webrtc: port("webrtcPort"),
        scrcpy: port("scrcpyPort"),
    }
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// Sixteen bytes, the last ones random.
fn uuid_bytes() -> [u8; 16] {
    let id = DeviceId::new().to_string().replace('-', "");
    u128::from_str_radix(&id, 16).unwrap().to_be_bytes()
}
