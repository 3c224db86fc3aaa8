//! What containers are made with, on whichever engine, and what they bear.

use std::time::Duration;

use coordination::{PortRanges, PortSet};

use super::Spec;
use super::android::Android;
use crate::Config;

/// The label with the id of the device.
pub const DEVICE_LABEL: &str = "cloudphone.device";
/// The label with the cluster the device belongs to.
pub const CLUSTER_LABEL: &str = "cloudphone.cluster";
/// The label with the fencing token of the worker that made the container.
pub const FENCE_LABEL: &str = "cloudphone.fence";

/// What containers of a cluster are made with, on whichever engine.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The image, where a device is not made of a snapshot.
    pub image: String,
    /// The id of this cluster.
    pub cluster: String,
    /// How Android is set up.
    pub android: Android,
    /// How long Android may take to boot.
    pub boot: Duration,
    /// The ports that devices are leased.
    pub ports: PortRanges,
}

impl Recipe {
    /// What the settings say, for the cluster of an id.
    pub fn new(cluster: &str, config: &Config) -> Self {
        Self {
            image: config.image.clone(),
            cluster: cluster.to_owned(),
            android: config.android.clone(),
            boot: config.boot,
            ports: config.ports.clone(),
        }
    }

    /// Whether it runs Android, and not a stand-in.
    pub fn is_android(&self) -> bool {
        self.image.contains("redroid")
    }

    /// What Android boots with; nothing for a stand-in.
    pub fn boot(&self, spec: &Spec) -> Option<Vec<String>> {
        self.is_android().then(|| self.android.boot(spec))
    }

    /// The lowest and the highest port of each kind.
    pub fn port_ends(&self) -> [PortSet; 2] {
        let PortRanges {
            adb,
            webrtc,
            scrcpy,
        } = &self.ports;
        let [low, high] = [
            (adb.start(), webrtc.start(), scrcpy.start()),
            (adb.end(), webrtc.end(), scrcpy.end()),
        ];
        [low, high].map(|(adb, webrtc, scrcpy)| PortSet {
            adb: *adb,
            webrtc: *webrtc,
            scrcpy: *scrcpy,
        })
    }

    /// What a stand-in is told of the device in its environment.
    pub fn environment(spec: &Spec) -> [(&'static str, String); 6] {
        [
            ("DEVICE_NAME", spec.name.clone()),
            ("DEVICE_LEASE", spec.id.to_string()),
            ("DEVICE_ANDROID_VERSION", spec.android_version.clone()),
            ("DEVICE_WIDTH", spec.width.to_string()),
            ("DEVICE_HEIGHT", spec.height.to_string()),
            ("DEVICE_DENSITY", spec.dpi.to_string()),
        ]
    }
}
