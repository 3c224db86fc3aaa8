//! Calls to the URL of a user, signed with a secret of the user's own.

use std::error::Error;
use std::time::Duration;

use http::header;
use platform::{Platform, standard_webhook};
use reqwest::Client;
use reqwest::redirect::Policy;
use secrecy::SecretSlice;
use serde_json::json;

use super::guard::{Refusal, Rules};
use super::{Carrier, Failure, Parcel};
use crate::webhook::db;

const CONNECT: Duration = Duration::from_secs(5);
/// How long a receiver may take for a whole call.
const WHOLE: Duration = Duration::from_secs(10);

/// The way to users' own URLs.
#[derive(Debug)]
pub struct Webhook {
    platform: Platform,
    client: Client,
    rules: Rules,
}

impl Webhook {
    /// Connects when it is used.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(platform: &Platform, rules: Rules) -> anyhow::Result<Self> {
        let client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .dns_resolver(rules)
            // Each call is judged anew.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            .user_agent("Cloudphone");
        Ok(Self {
            platform: platform.clone(),
            client: client.build()?,
            rules,
        })
    }
}

impl Carrier for Webhook {
    async fn carry(&self, parcel: &Parcel) -> Result<(), Failure> {
        let stored = async {
            let mut conn = self.platform.db.acquire().await?;
            db::find(&mut conn, &parcel.user_id).await
        };
        let hook = stored
            .await
            .map_err(|_: sqlx::Error| Failure::Passing("the database did not answer".to_owned()))?
            .ok_or_else(|| Failure::Final("the user has no webhook".to_owned()))?;
        // What was allowed when it was set may no longer be.
        let url = self
            .rules
            .url(&hook.url)
            .map_err(|refusal| Failure::Final(format!("the URL {refusal}")))?;
        let now = self.platform.clock.now();
        // Programs take notifications one by one: no digest gathers them for this way.
        let data = parcel.notifications.first();
        let body = json!({ "type": "notification", "timestamp": now, "data": data }).to_string();
        let secret: SecretSlice<u8> = hook.secret.into();
        let mut request = self
            .client
            .post(url)
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in
            standard_webhook::sign(&secret, &parcel.id, now.utc().timestamp(), body.as_bytes())
        {
            request = request.header(name, value);
        }
        let answer = request.body(body).send().await.map_err(refused)?;
        // Of the answer only the status is read: what a foreign server says is shown to nobody.
        match answer.status() {
            status if status.is_success() => Ok(()),
            http::StatusCode::GONE => Err(Failure::Final("the receiver answered 410".to_owned())),
            status => Err(Failure::Passing(format!(
                "the receiver answered {}",
                status.as_u16()
            ))),
        }
    }
}

/// What a user is told: nothing of the network that the call went through.
fn refused(error: reqwest::Error) -> Failure {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<Refusal>() {
            return Failure::Passing(format!("the URL {refusal}"));
        }
        cause = inner.source();
    }
    let told = if error.is_timeout() {
        "the receiver did not answer in time"
    } else if error.is_connect() {
        "the receiver could not be reached"
    } else {
        "the call was cut off"
    };
    Failure::Passing(told.to_owned())
}
