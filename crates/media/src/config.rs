//! Settings of the service.

use std::path::PathBuf;
use std::time::Duration;

use platform::Env;

use crate::provider::ProviderSettings;

const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf";

/// Settings of the service.
#[derive(Clone, Debug)]
pub struct Config {
    /// `MEDIA_WORKERS`: pieces of work at once on this replica. Default: the number of its cores.
    pub workers: usize,
    /// `MEDIA_LEASE_SECONDS`: how long a claim holds unless it is renewed, which happens at every third of it.
    /// Default 15.
    pub lease: Duration,
    /// `MEDIA_POLL_SECONDS`: how often due work and passed deadlines are looked for. Default 1.
    pub poll: Duration,
    /// `MEDIA_STITCH_DEADLINE_SECONDS`: how long after its creation a stitch may be made. Default 60.
    pub stitch_deadline: Duration,
    /// `MEDIA_COMPOSE_DEADLINE_SECONDS`: the same for a video that is composed. Default 300.
    pub compose_deadline: Duration,
    /// `MEDIA_PROVIDERS`: functions elsewhere that make things, a JSON list of `{"ref", "kind", "types", "priority",
    /// "weight", "limit", "timeoutSeconds", "secret", "url"}`. Default none. A secret.
    pub providers: Vec<ProviderSettings>,
    /// `MEDIA_PUBLIC_URL`: where providers reach us, as `https://api.example.com/api`. Without it they are not told where
    /// to report, and can be given URLs as inputs, but no uploads.
    pub public_url: Option<String>,
    /// `MEDIA_FETCH_LOOPBACK`: whether files are fetched from this machine too; for the sandbox. Default false.
    pub fetch_loopback: bool,
    /// `MEDIA_FFMPEG`: the program that makes videos, and pictures of texts. Default `ffmpeg`.
    pub ffmpeg: PathBuf,
    /// `MEDIA_FFMPEG_MEMORY_MB`: the address space it may take. Default 2048.
    pub ffmpeg_memory: u64,
    /// `MEDIA_FONT`: the font of captions and pictures of texts, one whose letters are equally wide. Default
    /// `/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf`.
    pub font: PathBuf,
    /// `MEDIA_CLEANUP_SCHEDULE`: when files that nobody needs are deleted. Default `0 * * * *`.
    pub cleanup_schedule: String,
    /// `MEDIA_HEALTH_SCHEDULE`: when providers are checked. Default `*/10 * * * *`.
    pub health_schedule: String,
    /// `MEDIA_STALE_SCHEDULE`: when tasks are failed that nobody began. Default `5 * * * *`.
    pub stale_schedule: String,
    /// `MEDIA_STATISTICS_SCHEDULE`: when it is written up what ended. Default `2 * * * *`.
    pub statistics_schedule: String,
    /// `MEDIA_USER_RUNNING`: tasks of one user at work at once, on all replicas. Default 4.
    pub user_running: i64,
    /// `MEDIA_USER_WAITING`: waiting tasks of one user; one more is refused with 429. Default 100.
    pub user_waiting: i64,
    /// `MEDIA_WAITING`: waiting tasks in all; one more is refused with 503. Default 10 000.
    pub waiting: i64,
    /// `MEDIA_USER_UPLOADS`: uploads that are kept for one user; one more is refused with 429. Default 1000.
    pub user_uploads: i64,
}

impl Config {
    /// Reads the settings; faults are collected in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            workers: env.within("MEDIA_WORKERS", cores.min(64), (1, 64)),
            lease: env.seconds("MEDIA_LEASE_SECONDS", Duration::from_secs(15)),
            poll: env.seconds("MEDIA_POLL_SECONDS", Duration::from_secs(1)),
            stitch_deadline: env.seconds("MEDIA_STITCH_DEADLINE_SECONDS", Duration::from_secs(60)),
            compose_deadline: env
                .seconds("MEDIA_COMPOSE_DEADLINE_SECONDS", Duration::from_secs(300)),
            providers: ProviderSettings::from_env(env),
            public_url: env
                .text("MEDIA_PUBLIC_URL")
                .map(|url| url.trim_end_matches('/').to_owned()),
            fetch_loopback: env.flag("MEDIA_FETCH_LOOPBACK", false),
            ffmpeg: env.value("MEDIA_FFMPEG", "ffmpeg".into()),
            ffmpeg_memory: env.within("MEDIA_FFMPEG_MEMORY_MB", 2048, (256, 65_536)),
            font: env.value("MEDIA_FONT", FONT.into()),
            cleanup_schedule: env.value("MEDIA_CLEANUP_SCHEDULE", "0 * * * *".to_owned()),
            health_schedule: env.value("MEDIA_HEALTH_SCHEDULE", "*/10 * * * *".to_owned()),
            stale_schedule: env.value("MEDIA_STALE_SCHEDULE", "5 * * * *".to_owned()),
            statistics_schedule: env.value("MEDIA_STATISTICS_SCHEDULE", "2 * * * *".to_owned()),
            user_running: env.within("MEDIA_USER_RUNNING", 4, (1, 1000)),
            user_waiting: env.within("MEDIA_USER_WAITING", 100, (1, 100_000)),
            waiting: env.within("MEDIA_WAITING", 10_000, (1, 1_000_000)),
            user_uploads: env.within("MEDIA_USER_UPLOADS", 1000, (1, 1_000_000)),
        }
    }
}
