//! How Android (redroid) is set up in its container: what it boots with, and what the container may do on the node.

use bollard::models::{DeviceMapping, HostConfig};
use platform::Env;
use serde::{Deserialize, Serialize};

use super::Spec;

names! {
    /// What draws the screen.
    GpuMode, "GPU mode" {
        /// The GPU of the node where there is one, otherwise the processor.
        Auto = "auto",
        /// The processor.
        Guest = "guest",
        /// The GPU of the node.
        Host = "host",
    }
}

/// How Android is set up.
#[derive(Clone, Debug)]
pub struct Android {
    /// `DEVICE_PRIVILEGED`: whether containers may do everything; then the next three count for nothing. Default false.
    pub privileged: bool,
    /// `DEVICE_CAPABILITIES`: capabilities beyond the usual ones.
    pub capabilities: Vec<String>,
    /// `DEVICE_DEVICES`: devices of the node, each `/dev/there:/dev/here`.
    pub devices: Vec<(String, String)>,
    /// `DEVICE_MOUNTS`: folders of the node, each `/there:/here`, with `:ro` behind it where it is only read.
    pub mounts: Vec<String>,
    /// `DEVICE_FPS`: frames a second. Default 30.
    pub fps: u32,
    /// `DEVICE_GPU_MODE`: auto (default), guest or host.
    pub gpu: GpuMode,
}

impl Android {
    /// Reads the settings; what is wrong with them is recorded in `env`.
    pub fn from_env(env: &mut Env) -> Self {
        let devices = env.list("DEVICE_DEVICES");
        let devices: Vec<_> = devices
            .into_iter()
            .filter_map(|device| {
                let pair = device.split_once(':');
                let pair = pair.filter(|(there, here)| is_path(there) && is_path(here));
                if pair.is_none() {
                    let message = format!("`{device}` is no pair such as /dev/binder:/dev/binder");
                    env.fault("DEVICE_DEVICES", message);
                }
                pair.map(|(there, here)| (there.to_owned(), here.to_owned()))
            })
            .collect();
        let mounts = env.list("DEVICE_MOUNTS");
        for mount in &mounts {
            let parts: Vec<_> = mount.split(':').collect();
            if !matches!(parts[..], [there, here] | [there, here, "ro" | "rw"] if is_path(there) && is_path(here))
            {
                let message = format!("`{mount}` is no pair such as /dev/binderfs:/dev/binderfs");
                env.fault("DEVICE_MOUNTS", message);
            }
        }
        Self {
            privileged: env.flag("DEVICE_PRIVILEGED", false),
            capabilities: env.list("DEVICE_CAPABILITIES"),
            devices,
            mounts,
            fps: env.within("DEVICE_FPS", 30, (1, 240)),
            gpu: env.value("DEVICE_GPU_MODE", GpuMode::Auto),
        }
    }

    /// What Android boots with.
    pub fn boot(&self, spec: &Spec) -> Vec<String> {
        vec![
            format!("androidboot.redroid_width={}", spec.width),
            format!("androidboot.redroid_height={}", spec.height),
            format!("androidboot.redroid_dpi={}", spec.dpi),
            format!("androidboot.redroid_fps={}", self.fps),
            format!("androidboot.redroid_gpu_mode={}", self.gpu),
        ]
    }

    /// What its container may do on the node.
    pub fn host(&self) -> HostConfig {
        if self.privileged {
            return HostConfig {
                privileged: Some(true),
                ..HostConfig::default()
            };
        }
        let devices = self.devices.iter().map(|(there, here)| DeviceMapping {
            path_on_host: Some(there.clone()),
            path_in_container: Some(here.clone()),
            cgroup_permissions: Some("rwm".into()),
        });
        HostConfig {
            privileged: Some(false),
            cap_add: Some(self.capabilities.clone()),
            devices: Some(devices.collect()),
            binds: Some(self.mounts.clone()),
            ..HostConfig::default()
        }
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() > 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tests::spec;

    #[test]
    fn android_boots_with_what_the_device_and_the_settings_say() {
        let mut env = Env::of([("DEVICE_FPS", "60"), ("DEVICE_GPU_MODE", "guest")]);

        let android = Android::from_env(&mut env);

        assert!(env.finish().is_ok());
        assert_eq!(
            android.boot(&spec()),
            [
                "androidboot.redroid_width=720",
                "androidboot.redroid_height=1280",
                "androidboot.redroid_dpi=240",
                "androidboot.redroid_fps=60",
                "androidboot.redroid_gpu_mode=guest",
            ]
        );
        assert_eq!(android.host().privileged, Some(false));
    }

    #[test]
    fn a_container_gets_what_is_named_or_everything() {
        let mut env = Env::of([
            ("DEVICE_CAPABILITIES", "SYS_ADMIN, NET_ADMIN"),
            ("DEVICE_DEVICES", "/dev/binder:/dev/binder"),
            ("DEVICE_MOUNTS", "/dev/binderfs:/dev/binderfs:ro"),
        ]);
        let mut android = Android::from_env(&mut env);
        assert!(env.finish().is_ok());

        let host = android.host();
        assert_eq!(host.cap_add.unwrap_or_default(), ["SYS_ADMIN", "NET_ADMIN"]);
        assert_eq!(
            host.binds.unwrap_or_default(),
            ["/dev/binderfs:/dev/binderfs:ro"]
        );
        let devices = host.devices.unwrap_or_default();
        assert_eq!(devices[0].path_on_host.as_deref(), Some("/dev/binder"));

        android.privileged = true;
        let host = android.host();
        assert_eq!((host.privileged, host.cap_add), (Some(true), None));
    }

    #[test]
    fn what_is_no_device_or_mount_is_refused() {
        for (name, text) in [
            ("DEVICE_DEVICES", "/dev/binder"),
            ("DEVICE_DEVICES", "binder:/dev/binder"),
            ("DEVICE_MOUNTS", "/a:/b:x"),
            ("DEVICE_MOUNTS", "/a"),
            ("DEVICE_GPU_MODE", "both"),
        ] {
            let mut env = Env::of([(name, text)]);
            Android::from_env(&mut env);
            let error = env.finish().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
