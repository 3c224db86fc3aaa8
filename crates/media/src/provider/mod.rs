//! Providers: functions elsewhere that make what a step asks for, and how well each of them does.

pub mod api;
pub mod db;
mod function;
pub mod health;
mod http;
mod scf;
mod settings;

use std::sync::Arc;
use std::time::{Duration, Instant};

use contracts::Timestamp;
use platform::Platform;
use secrecy::{ExposeSecret, SecretSlice};
use serde_json::Value;
use tokio::time::timeout;
use tracing::warn;

pub use function::{Answer, Function, MOST_OUTPUTS, Message, Refusal, Report, Reported, Taken};
pub use settings::{FunctionSettings, ProviderSettings};

use crate::task::TaskType;

/// How long a provider may take to say how it does.
const CHECK: Duration = Duration::from_secs(5);
/// How long it may take to say how tasks go.
const QUERY: Duration = Duration::from_secs(10);

/// Somebody who makes things for us. A clone is the same one.
#[derive(Clone)]
pub struct Provider(Arc<Inner>);

struct Inner {
    settings: ProviderSettings,
    function: Box<dyn Function>,
    platform: Platform,
}

/// All that are configured.
#[derive(Clone, Default)]
pub struct Providers(Vec<Provider>);

impl Providers {
    /// Connects when they are used.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(platform: &Platform, settings: &[ProviderSettings]) -> anyhow::Result<Self> {
        let provider = |settings: &ProviderSettings| {
            let function: Box<dyn Function> = match &settings.function {
                FunctionSettings::Http { url } => {
                    Box::new(http::HttpFunction::new(url, settings.key())?)
                }
                FunctionSettings::Scf(settings) => Box::new(scf::ScfFunction::new(settings)?),
            };
            anyhow::Ok(Provider(Arc::new(Inner {
                settings: settings.clone(),
                function,
                platform: platform.clone(),
            })))
        };
        settings
            .iter()
            .map(provider)
            .collect::<anyhow::Result<_>>()
            .map(Self)
    }

    /// The provider of this name.
    pub fn find(&self, name: &str) -> Option<&Provider> {
        self.0.iter().find(|provider| provider.name() == name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.0.iter()
    }

    /// Those that make a type, in the order in which they are to be asked: by priority, and among equals by chance,
    /// the heavier the likelier.
    pub fn offering(&self, kind: TaskType) -> Vec<Provider> {
        let offering = self
            .0
            .iter()
            .filter(|one| one.settings().types.contains(&kind));
        let mut ranked: Vec<_> = offering
            .map(|one| {
                let chance =
                    rand::random::<f64>().powf(1.0 / f64::from(one.settings().weight.max(1)));
                (one.settings().priority, chance, one.clone())
            })
            .collect();
        ranked.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        ranked.into_iter().map(|(_, _, one)| one).collect()
    }
}

impl Provider {
    /// What it is called.
    pub fn name(&self) -> &str {
        &self.0.settings.reference
    }

    /// What was set for it.
    pub fn settings(&self) -> &ProviderSettings {
        &self.0.settings
    }

    /// The secret under which both sides sign.
    pub fn key(&self) -> SecretSlice<u8> {
        self.0.settings.key()
    }

    /// Hands a step over; how the provider names it. The reference makes it once, however often it is sent.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn submit(&self, message: &Message<'_>) -> Result<String, Refusal> {
        let taken: Taken = self.ask(message, self.0.settings.timeout()).await?;
        taken
            .id
            .filter(|id| is_name(id))
            .ok_or_else(|| strange("names no id"))
    }

    /// How it names a step, where it has taken that.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn find(&self, reference: &str) -> Result<Option<String>, Refusal> {
        let taken: Taken = self.ask(&Message::Find { reference }, QUERY).await?;
        match taken.id {
            Some(id) if !is_name(&id) => Err(strange("names no id")),
            id => Ok(id),
        }
    }

    /// How steps go that it has taken.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn query(&self, ids: &[&str]) -> Result<Vec<Report>, Refusal> {
        let answer: Answer = self.ask(&Message::Query { ids }, QUERY).await?;
        Ok(answer.tasks)
    }

    /// Tells that nobody wants a step any more.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn cancel(&self, reference: &str, id: Option<&str>) -> Result<(), Refusal> {
        let _: Value = self.ask(&Message::Cancel { reference, id }, QUERY).await?;
        Ok(())
    }

    /// Asks how it does, and how long that took.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn check(&self) -> Result<Duration, Refusal> {
        let began = Instant::now();
        let _: Value = self.call(&Message::Health, CHECK).await?;
        Ok(began.elapsed())
    }

    /// Calls, and notes for all replicas how that went.
    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        message: &Message<'_>,
        most: Duration,
    ) -> Result<T, Refusal> {
        let began = Instant::now();
        let answer = self.call(message, most).await;
        let worked = matches!(answer, Ok(_) | Err(Refusal::Refused(_)));
        self.note(worked, began.elapsed()).await;
        answer
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        message: &Message<'_>,
        most: Duration,
    ) -> Result<T, Refusal> {
        let now = self.now().utc().timestamp();
        let body = serde_json::to_vec(message)
            .map_err(|_| Refusal::Refused("it cannot be written as JSON".to_owned()))?;
        let answer = timeout(most, self.0.function.call(body, now)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Refusal::Unclear("no answer in time".to_owned())))?;
        serde_json::from_slice(&answer).map_err(|_| strange("cannot be read"))
    }

    async fn note(&self, worked: bool, took: Duration) {
        let noted = async {
            let mut conn = self.0.platform.db.acquire().await?;
            db::note(&mut conn, self.name(), worked, took, self.now()).await
        };
        if let Err(error) = noted.await {
            warn!("could not note a call to provider {}: {error}", self.name());
        }
    }

    fn now(&self) -> Timestamp {
        self.0.platform.clock.now()
    }
}

fn is_name(id: &str) -> bool {
    (1..=200).contains(&id.len()) && !id.contains('\0')
}

fn strange(what: &str) -> Refusal {
    Refusal::Unclear(format!("the answer {what}"))
}

impl ProviderSettings {
    /// The secret under which both sides sign.
    pub fn key(&self) -> SecretSlice<u8> {
        self.secret.expose_secret().as_bytes().to_vec().into()
    }
}
