//! The composition root: one replica, with all services or those it is told to have.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use chrono::TimeDelta;
use contracts::Service;
use coordination::{
    Announcement, Check, Cron, Invariants, Job, Jobs, Keys, Membership, RateLimiter, Redlock,
    Registry,
};
use gateway::front::health::{About, health};
use gateway::front::{
    Decisions, Front, FrontConfig, Identities, Keyed, Limiters, Upstreams, Workers, hostname,
};
use platform::auth::Edge;
use platform::config::{ConfigError, Stores};
use platform::lifecycle::{Lifecycle, Stage, Tasks, Tick};
use platform::listen::Listeners;
use platform::serve::tls::Tls;
use platform::serve::{Drain, Server, raise_open_files};
use platform::{Env, Platform, Settings, http, telemetry};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::docs;
use crate::explain::Inquiry;
use crate::local::{self, Local};
use crate::metric_help;
use crate::secure::{self, SecurePort};
use crate::traffic::Traffic;
use crate::turns::in_turn;

/// How long a cron lock lives without renewal; a replica that dies is made good after it.
const CRON_LOCK: Duration = Duration::from_secs(10);
/// How long the runs of cron jobs are remembered, and how often older ones are deleted.
const CRON_HISTORY: TimeDelta = TimeDelta::days(30);
const CRON_HISTORY_EVERY: Duration = Duration::from_secs(3600);
const CRON_HISTORY_BATCH: i64 = 500;
const UPKEEP: Duration = Duration::from_secs(5);
/// How long the gateway's door stays shut for it to hear of the services beside it.
const ACQUAINTANCE: Duration = Duration::from_secs(2);
/// How far the metrics of invariants are behind the database.
const PUBLISH: Duration = Duration::from_secs(5);

/// Every setting of every service.
pub struct Config {
    /// Those that all services share.
    pub settings: Settings,
    front: FrontConfig,
    users: users::Config,
    /// Those of the devices service.
    pub devices: devices::Config,
    apps: apps::Config,
    media: media::Config,
    billing: billing::Config,
    notifications: notifications::Config,
}

impl Config {
    /// Reads every setting, and lists all faults at once.
    pub fn from_env(mut env: Env) -> anyhow::Result<Self> {
        let config = Self::read(&mut env);
        env.finish()?;
        Ok(config)
    }

    /// Reads every setting and the files of the certificate that they name, and lists all faults of both at once.
    pub fn checked(mut env: Env) -> Result<Self, ConfigError> {
        let config = Self::read(&mut env);
        let port = config.front.tls.as_ref();
        for fault in port.into_iter().flat_map(secure::faults) {
            env.fault(fault.variable, fault.message);
        }
        env.finish()?;
        Ok(config)
    }

    fn read(env: &mut Env) -> Self {
        let settings = Settings::from_env(env);
        Self {
            front: FrontConfig::from_env(env, &settings, &Keys::new(&settings.key_prefix)),
            settings,
            users: users::Config::from_env(env),
            devices: devices::Config::from_env(env),
            apps: apps::Config::from_env(env),
            media: media::Config::from_env(env),
            billing: billing::Config::from_env(env),
            notifications: notifications::Config::from_env(env),
        }
    }
}

/// A service of this replica, ready to be served.
struct Part {
    service: Service,
    handler: Handler,
    traffic: Traffic,
}

/// What takes a service's connections.
enum Handler {
    Router(Router),
    Front {
        front: Front,
        upstreams: Upstreams,
        workers: Workers,
        patience: Duration,
        tls: Option<(SocketAddr, Tls)>,
    },
}

/// Serves until a signal, then leaves. The exit code.
pub async fn serve(env: Env, services: &[Service]) -> anyhow::Result<i32> {
    let config = Config::from_env(env)?;
    telemetry::start_metrics()?;
    metric_help::describe();
    raise_open_files();
    let services = if services.is_empty() {
        &Service::ALL
    } else {
        services
    };
    let secure = match services.contains(&Service::Gateway) {
        true => SecurePort::open(config.front.tls.as_ref())?,
        false => None,
    };
    let mut life = Lifecycle::new(config.settings.shutdown_grace)?;
    let started = life.start(start(&life, config, services, secure)).await;
    let Some((replica, parts)) = started.transpose()? else {
        return Ok(0);
    };
    // From the first socket on clients may wait in it, so that a signal does not cut this off: it leaves in order.
    let signalled = life.signalled();
    let doors = open(&replica, parts, &signalled).await?;
    replica.arrange_leaving(doors, &mut life);
    if !signalled.is_cancelled() {
        life.ready();
    }
    Ok(life.run().await)
}

/// What a started replica holds until it leaves.
struct Replica {
    cluster: Cluster,
    registry: Registry,
    drain: Drain,
    sockets: CancellationToken,
    front: Option<Front>,
    devices: Option<devices::Devices>,
    notifications: Option<notifications::Notifications>,
}

/// By what a replica is reached, and where that is said.
struct Doors {
    listeners: Listeners,
    memberships: Vec<Arc<Membership>>,
}

async fn start(
    life: &Lifecycle,
    config: Config,
    services: &[Service],
    secure: Option<SecurePort>,
) -> anyhow::Result<(Replica, Vec<Part>)> {
    let settings = config.settings.clone();
    let cluster = Cluster::join(settings.clone(), life.readiness()).await?;
    let platform = &cluster.platform;
    let tasks = life.tasks();
    let registry = Registry::new(platform.redis.clone(), platform.keys.clone());
    let sockets = CancellationToken::new();
    let has = |service| services.contains(&service);
    let mut parts = Vec::new();
    let mut crons: Vec<Job> = Vec::new();
    let mut checks: Vec<Check> = Vec::new();
    let mut routed = |service, routes: OpenApiRouter| {
        let router = http::service(platform, service, routes).router;
        parts.push(Part {
            service,
            handler: Handler::Router(router),
            traffic: Traffic::default(),
        });
    };

    if has(Service::Users) {
        let users = users::Users::new(platform, config.users).await?;
        users.spawn_jobs(&tasks).await?;
        crons.extend(users.cron_jobs());
        let quotas = devices::Quotas::new(platform, &config.devices);
        let routes = users::router(users).merge(devices::quota_router(quotas));
        routed(Service::Users, routes);
    }
    let mut devices_here = None;
    if has(Service::Devices) {
        let devices = devices::Devices::new(platform, config.devices).await?;
        devices.spawn_jobs(&tasks).await?;
        crons.extend(devices.cron_jobs());
        checks.extend(devices.invariants());
        devices_here = Some(devices.clone());
        routed(Service::Devices, devices::router(devices));
    }
    if has(Service::Apps) {
        let apps = apps::Apps::new(platform, config.apps).await?;
        apps.spawn_jobs(&tasks).await?;
        crons.extend(apps.cron_jobs());
        routed(Service::Apps, apps::router(apps));
    }
    if has(Service::Media) {
        let media = media::Media::new(platform, config.media).await?;
        media.spawn_jobs(&tasks).await?;
        crons.extend(media.cron_jobs());
        routed(Service::Media, media::router(media));
    }
    if has(Service::Billing) {
        let billing = billing::Billing::new(platform, config.billing).await?;
        billing.spawn_jobs(&tasks).await?;
        crons.extend(billing.cron_jobs());
        routed(Service::Billing, billing::router(billing));
    }
    let mut notifications = None;
    if has(Service::Notifications) {
        let state = notifications::Notifications::new(platform, config.notifications).await?;
        state.spawn_jobs(&tasks).await?;
        crons.extend(state.cron_jobs());
        let router = http::service(
            platform,
            Service::Notifications,
            notifications::router(state.clone()),
        )
        .router;
        let handler = Handler::Router(notifications::wrap(router, &state));
        parts.push(Part {
            service: Service::Notifications,
            handler,
            traffic: Traffic::default(),
        });
        notifications = Some(state);
    }
    let mut front = None;
    if has(Service::Gateway) {
        let upstreams = Upstreams::of(&registry, &config.front);
        let workers =
            Workers::start(config.front.workers).context("starting the door's threads")?;
        let patience = config.front.stream_idle;
        let tls = secure.map(|port| Ok::<_, anyhow::Error>((port.address, port.begin(&tasks)?)));
        let door = front_door(
            platform,
            &registry,
            config.front,
            &upstreams,
            &workers,
            &tasks,
            sockets.clone(),
        )?;
        parts.push(Part {
            service: Service::Gateway,
            handler: Handler::Front {
                front: door.clone(),
                upstreams,
                workers,
                patience,
                tls: tls.transpose()?,
            },
            traffic: Traffic::default(),
        });
        front = Some(door.clone());
        tasks.every("gateway.upkeep", UPKEEP, move || {
            door.upkeep();
            async { Ok(Tick::Idle) }
        });
    }

    platform::events::spawn_relay(platform, &tasks);
    platform.clock.keep_set(&platform.db, &tasks);
    platform.auth.api_keys().follow(&tasks);
    let invariants = Invariants::new(platform.db.clone(), process());
    checks.extend(invariants.checks());
    crons.extend(checks.into_iter().map(|check| invariants.job(check)));
    spawn_crons(platform, &tasks, crons)?;
    tasks.every("invariants.publish", PUBLISH, move || {
        let invariants = invariants.clone();
        async move {
            invariants.publish().await?;
            Ok(Tick::Idle)
        }
    });
    tasks.every("telemetry.upkeep", UPKEEP, || async {
        telemetry::upkeep();
        Ok(Tick::Idle)
    });

    let replica = Replica {
        registry,
        drain: Drain::new(),
        sockets,
        front,
        devices: devices_here,
        notifications,
        cluster,
    };
    Ok((replica, parts))
}

/// Opens the ports and, once they answer, joins the registry. After a signal it joins no more, and only answers what
/// waits in the ports.
async fn open(
    to: &Replica,
    parts: Vec<Part>,
    signalled: &CancellationToken,
) -> anyhow::Result<Doors> {
    let (platform, registry, drain) = (&to.cluster.platform, &to.registry, &to.drain);
    let settings = &platform.settings;
    let mut addresses: Vec<(String, SocketAddr)> = parts
        .iter()
        .map(|part| {
            (
                part.service.name().to_owned(),
                settings.address(part.service),
            )
        })
        .collect();
    addresses.extend(parts.iter().find_map(|part| match &part.handler {
        Handler::Front { tls, .. } => Some((secure::NAME.to_owned(), tls.as_ref()?.0)),
        Handler::Router(_) => None,
    }));
    let run = settings
        .home
        .join("run")
        .join(settings.listen_address.to_string().replace(':', "_"));
    let listeners = Listeners::open(&run, &addresses).await?;
    let replica = Uuid::new_v4().to_string();
    let started_at = platform.clock.now().utc();
    let mut memberships = Vec::new();
    let mut joined = Vec::new();
    for part in parts {
        let name = part.service.name();
        let own = listeners.open_private(name, SocketAddr::new(settings.listen_address, 0))?;
        match part.handler {
            Handler::Router(router) => {
                listeners.serve(
                    name,
                    Server::new(name, part.traffic.count(router), drain).handler(),
                );
            }
            Handler::Front {
                front,
                upstreams,
                workers,
                patience,
                tls,
            } => {
                // Who comes through the door finds the services that have just joined.
                let known = timeout(ACQUAINTANCE, upstreams.know(&joined, &replica));
                if let Some(Err(_)) = signalled.run_until_cancelled(known).await {
                    info!("the gateway opens before it has heard of this replica's services");
                }
                let server = Server::new(name, part.traffic.count(front), drain);
                let server = server.give_up_after(patience);
                if let Some((address, tls)) = tls {
                    let (server, workers) = (server.clone(), workers.clone());
                    let handler = server.handler_on(Some(tls), move || workers.idlest().clone());
                    listeners.serve(secure::NAME, handler);
                    info!("{name} speaks TLS on {address}");
                }
                let handler = server.handler_on(None, move || workers.idlest().clone());
                listeners.serve(name, handler);
            }
        }
        let announcement = Announcement {
            service: name.to_owned(),
            address: SocketAddr::new(settings.advertise_address, own.port()).to_string(),
            host: hostname(),
            zone: settings.zone.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at,
            replica: replica.clone(),
        };
        let joining = registry.join(announcement);
        let membership = match signalled.run_until_cancelled(joining).await {
            Some(Ok(membership)) => membership,
            Some(Err(error)) => {
                // What waits in our sockets goes to a replica that could start.
                listeners.hand_over().await;
                return Err(error).context("joining the registry");
            }
            None => continue,
        };
        let traffic = part.traffic;
        membership.report_load(move || traffic.load());
        info!(
            "{name} {} listens on {} and {own}",
            membership.instance(),
            settings.address(part.service)
        );
        let membership = Arc::new(membership);
        let named = membership.clone();
        platform.name_instance(part.service, move || named.instance());
        memberships.push(membership);
        joined.push(part.service);
    }
    Ok(Doors {
        listeners,
        memberships,
    })
}

fn front_door(
    platform: &Platform,
    registry: &Registry,
    config: FrontConfig,
    upstreams: &Upstreams,
    workers: &Workers,
    tasks: &Tasks,
    sockets: CancellationToken,
) -> anyhow::Result<Front> {
    let environment = platform.settings.profile.name();
    let about = About {
        version: env!("CARGO_PKG_VERSION"),
        environment,
        clock: platform.clock.clone(),
    };
    let decisions = Decisions::new(config.decisions, config.remember);
    let named = platform.clone();
    let health = health(upstreams.clone(), about, move || {
        named.instance(Service::Gateway)
    });
    let health = in_turn(health, platform, registry)?;
    let own = Local {
        platform: platform.clone(),
        upstreams: upstreams.clone(),
        snapshots: registry.watch(),
        jobs: Jobs::new(platform.db.clone()),
        invariants: Invariants::new(platform.db.clone(), process()),
        decisions: decisions.clone(),
        inquiry: Inquiry::new()?,
    };
    let local = local::router(own, health);
    let redis = (platform.redis.clone(), limiters(platform, workers)?);
    let identities = Identities::new(Edge::new(platform, tasks), docs::guarded())?;
    let config = FrontConfig {
        keyed: Keyed::new(docs::keyed()),
        ..config
    };
    Ok(Front::new(
        config,
        upstreams.clone(),
        Some(redis),
        Some(identities),
        local,
        decisions,
        sockets,
    ))
}

/// A worker asks Redis by a connection of its own, so that a request stays on its thread also while it waits for that.
fn limiters(platform: &Platform, workers: &Workers) -> anyhow::Result<Limiters> {
    let keys = || platform.keys.clone();
    let of_worker = |worker| {
        let redis = platform.redis_on(worker)?;
        let _entered = worker.enter();
        Ok(RateLimiter::new(redis, keys()))
    };
    let of_workers: anyhow::Result<Vec<_>> = workers.each().map(of_worker).collect();
    let of_others = RateLimiter::new(platform.redis.clone(), keys());
    Ok(Limiters::new(of_others, of_workers?))
}

fn spawn_crons(platform: &Platform, tasks: &Tasks, mut jobs: Vec<Job>) -> anyhow::Result<()> {
    let settings = &platform.settings;
    for job in &mut jobs {
        let usual = Some(settings.cron_pause_after).filter(|after| *after > 0);
        job.pause_after = job.pause_after.or(usual);
    }
    let mut urls = settings.redlock_urls.clone();
    let mut setting = "REDLOCK_URLS";
    if urls.is_empty() {
        setting = "REDIS_URL, as the lock master in place of REDLOCK_URLS";
        let is_single = ["redis://", "rediss://"]
            .iter()
            .any(|scheme| platform.redis_url.starts_with(scheme));
        if matches!(&settings.stores, Stores::External { .. }) && !is_single {
            anyhow::bail!("REDLOCK_URLS is needed where REDIS_URL is not a single server's");
        }
        urls.push(platform.redis_url.to_string());
    }
    let redlock = Redlock::new(urls, CRON_LOCK).context(setting)?;
    let cron = Cron::new(platform.db.clone(), redlock, process()).with_keys(platform.keys.clone());
    let cron = cron.with_time_zone(settings.cron_time_zone);
    let history = cron.jobs();
    tasks.every("cron.history", CRON_HISTORY_EVERY, move || {
        let history = history.clone();
        async move {
            let deleted = history
                .purge_history(CRON_HISTORY, CRON_HISTORY_BATCH)
                .await?;
            Ok(Tick::after_batch(
                usize::try_from(deleted)?,
                CRON_HISTORY_BATCH,
            ))
        }
    });
    let stop = tasks.stopping();
    tasks.spawn("cron", async move { Ok(cron.run(jobs, stop).await?) });
    Ok(())
}

impl Replica {
    /// Fills the stages of leaving.
    fn arrange_leaving(self, doors: Doors, life: &mut Lifecycle) {
        let Doors {
            listeners,
            memberships,
        } = doors;
        let Self {
            cluster,
            registry,
            drain,
            sockets,
            front,
            devices,
            notifications,
        } = self;
        let announced = drain.clone();
        let told = notifications.clone();
        life.on(Stage::Unregister, "clients", move |_| async move {
            if let Some(notifications) = told {
                notifications.announce_restart();
            }
        });
        life.on(Stage::Unregister, "registry", move |_| async move {
            for membership in &memberships {
                membership.set_draining(true);
            }
            announced.announce();
        });
        life.on(Stage::StopAccepting, "listeners", move |_| async move {
            listeners.hand_over().await;
        });
        life.on(Stage::FinishRequests, "requests", move |left| async move {
            drain.finish(left).await;
        });
        // Sockets go while requests finish: a long poll would hold the stage up otherwise.
        life.on(Stage::FinishRequests, "sockets", move |_| async move {
            let tunnels = async {
                if let Some(devices) = devices {
                    devices.close_tunnels().await;
                }
            };
            let notices = async {
                if let Some(notifications) = notifications {
                    notifications.close_sockets().await;
                }
            };
            tokio::join!(tunnels, notices);
            sockets.cancel();
            if let Some(front) = front {
                front.drained().await;
            }
        });
        life.on(Stage::ReturnSlot, "slot", move |_| async move {
            if let Err(error) = registry.leave_all().await {
                info!("the slots are not returned, they expire by themselves: {error}");
            }
            cluster.leave().await;
        });
    }
}

/// The name of this process in the history of jobs.
fn process() -> String {
    format!("{}:{}", hostname(), std::process::id())
}
