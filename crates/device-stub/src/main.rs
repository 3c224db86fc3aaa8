//! `device-stub`: a device on three ports, until SIGTERM.

use std::env;
use std::error::Error;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::str::FromStr;

use device_stub::{Device, DeviceProfile, Ports};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const HELP: &str = "\
device-stub: behaves like an Android device on its ports

Every setting is an argument --name=value or the variable beside it.

  --bind=ADDRESS          DEVICE_BIND             0.0.0.0
  --adb-port=PORT         DEVICE_ADB_PORT         5555
  --webrtc-port=PORT      DEVICE_WEBRTC_PORT      8080
  --scrcpy-port=PORT      DEVICE_SCRCPY_PORT      27183
  --name=NAME             DEVICE_NAME             the host's name, or device-stub
  --lease=LEASE           DEVICE_LEASE
  --model=MODEL           DEVICE_MODEL            Cloudphone Stub
  --android-version=N     DEVICE_ANDROID_VERSION  14
  --width=PIXELS          DEVICE_WIDTH            1080
  --height=PIXELS         DEVICE_HEIGHT           1920
  --density=DPI           DEVICE_DENSITY          420
  --help
";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<_> = env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        let _ = std::io::stdout().write_all(HELP.as_bytes());
        return ExitCode::SUCCESS;
    }
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = error
                .source()
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            eprintln!("device-stub: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &[String]) -> Result<(), Box<dyn Error>> {
    let settings = Settings::read(args)?;
    let unset = DeviceProfile::default();
    let host = env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    let profile = DeviceProfile {
        name: settings.get("name", host.unwrap_or(unset.name))?,
        lease: settings.get("lease", unset.lease)?,
        model: settings.get("model", unset.model)?,
        android_version: settings.get("android-version", unset.android_version)?,
        width: settings.get("width", unset.width)?,
        height: settings.get("height", unset.height)?,
        density: settings.get("density", unset.density)?,
    };
    let address: IpAddr = settings.get("bind", IpAddr::from([0, 0, 0, 0]))?;
    let ports = Ports {
        adb: settings.get("adb-port", 5555)?,
        webrtc: settings.get("webrtc-port", 8080)?,
        scrcpy: settings.get("scrcpy-port", 27183)?,
    };

    // As process 1 of a container no signal ends us by itself.
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let name = profile.name.clone();
    let bound = Device::new(profile).bind(address, ports).await?;
    let Ports {
        adb,
        webrtc,
        scrcpy,
    } = bound.ports()?;
    eprintln!("{name} answers on {address}: adb {adb}, webrtc {webrtc}, scrcpy {scrcpy}");
    let stop = CancellationToken::new();
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    };
    tokio::join!(bound.run(stop.clone()), stopped);
    Ok(())
}

const NAMES: &[&str] = &[
    "bind",
    "adb-port",
    "webrtc-port",
    "scrcpy-port",
    "name",
    "lease",
    "model",
    "android-version",
    "width",
    "height",
    "density",
];

/// The arguments `--name=value`.
struct Settings<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Settings<'a> {
    fn read(args: &'a [String]) -> Result<Self, String> {
        let pairs = args.iter().map(|arg| {
            let pair = arg.strip_prefix("--").and_then(|arg| arg.split_once('='));
            pair.filter(|(name, _)| NAMES.contains(name))
                .ok_or(format!("unknown argument {arg} (see --help)"))
        });
        Ok(Self(pairs.collect::<Result<_, _>>()?))
    }

    fn get<T: FromStr>(&self, name: &str, unset: T) -> Result<T, String> {
        let variable = format!("DEVICE_{}", name.to_uppercase().replace('-', "_"));
        let given = self
            .0
            .iter()
            .rev()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned());
        match given.or_else(|| env::var(&variable).ok()) {
            None => Ok(unset),
            Some(value) => value
                .parse()
                .map_err(|_| format!("--{name} ({variable}) cannot be {value:?}")),
        }
    }
}
