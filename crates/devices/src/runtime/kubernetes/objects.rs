//! The objects of a device: a claim that keeps what is on it, a service with its ports, and, while it runs, a pod.

use std::collections::BTreeMap;

use coordination::PortSet;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, HostPathVolumeSource, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, Pod, PodSpec,
    ResourceRequirements, SecurityContext, Service, ServicePort, ServiceSpec, Volume, VolumeMount,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::STOP_GRACE_SECONDS;
use crate::runtime::Spec;
use crate::runtime::docker::name;
use crate::runtime::recipe::{CLUSTER_LABEL, DEVICE_LABEL, FENCE_LABEL, Recipe};

/// The ports of a device within its pod: their names in the service, and their numbers.
pub const INSIDE: [(&str, i32); 3] = [("adb", 5555), ("webrtc", 8080), ("scrcpy", 27183)];
/// The label by which tools know who made an object.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const DATA: &str = "data";

/// A port of the nodes for each of [`INSIDE`].
pub fn outside(ports: PortSet) -> [u16; 3] {
    [ports.adb, ports.webrtc, ports.scrcpy]
}

/// What the objects of a device are called, and bear.
pub fn metadata(spec: &Spec, recipe: &Recipe) -> ObjectMeta {
    let labels = [
        (DEVICE_LABEL, spec.id.to_string()),
        (CLUSTER_LABEL, recipe.cluster.clone()),
        (FENCE_LABEL, spec.fence.to_string()),
        (MANAGED_BY, "cloudphone".to_owned()),
    ];
    ObjectMeta {
        name: Some(name(&spec.id)),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        ..ObjectMeta::default()
    }
}

/// Has an object go when the claim of its device goes, whenever it was made.
pub fn own(meta: &mut ObjectMeta, claim: &ObjectMeta) {
    let (Some(name), Some(uid)) = (claim.name.clone(), claim.uid.clone()) else {
        return;
    };
    meta.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "PersistentVolumeClaim".to_owned(),
        name,
        uid,
        ..OwnerReference::default()
    }]);
}

/// The claim on the storage of a device, which outlives its pods.
pub fn claim(spec: &Spec, recipe: &Recipe, class: Option<&str>) -> PersistentVolumeClaim {
    let storage = Quantity(format!("{}Mi", spec.storage_mb));
    PersistentVolumeClaim {
        metadata: metadata(spec, recipe),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: class.map(str::to_owned),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), storage)])),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// The ports of a service: each leased port, on every node of the cluster.
pub fn service_ports(ports: PortSet) -> Vec<ServicePort> {
    let pairs = INSIDE.into_iter().zip(outside(ports));
    let port = |((name, inside), outside): ((&str, i32), u16)| ServicePort {
        name: Some(name.to_owned()),
        port: inside,
        target_port: Some(IntOrString::Int(inside)),
        node_port: Some(outside.into()),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    };
    pairs.map(port).collect()
}

/// The service of a device.
pub fn service(spec: &Spec, recipe: &Recipe) -> Service {
    let selector = [
        (DEVICE_LABEL.to_owned(), spec.id.to_string()),
        (CLUSTER_LABEL.to_owned(), recipe.cluster.clone()),
    ];
    Service {
        metadata: metadata(spec, recipe),
        spec: Some(ServiceSpec {
            type_: Some("NodePort".into()),
            selector: Some(selector.into()),
            ports: Some(service_ports(spec.ports)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The ports of the nodes that a service has; `None` where they are not those of a device.
pub fn node_ports(service: &Service) -> Option<PortSet> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    let of = |inside: i32| {
        let port = ports.iter().find(|port| port.port == inside)?;
        u16::try_from(port.node_port?).ok()
    };
    let [adb, webrtc, scrcpy] = INSIDE.map(|(_, inside)| of(inside));
    Some(PortSet {
        adb: adb?,
        webrtc: webrtc?,
        scrcpy: scrcpy?,
    })
}

/// The pod that a device runs in. It ends for good when Android does: what becomes of the device then is decided by the
/// reconciler alone, as on other runtimes.
pub fn pod(spec: &Spec, recipe: &Recipe, overcommit: f64) -> Pod {
    let amounts = |millis: i64| {
        let memory = Quantity(format!("{}Mi", spec.memory_mb));
        let cpu = Quantity(format!("{millis}m"));
        BTreeMap::from([("cpu".to_owned(), cpu), ("memory".to_owned(), memory)])
    };
    let millis = i64::from(spec.cpu_cores) * 1000;
    // The scheduler of the cluster adds up requests; limits are what a device may use.
    let requested = (millis as f64 / overcommit.max(0.001)).round() as i64;
    let variables = Recipe::environment(spec).map(|(name, value)| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        ..EnvVar::default()
    });
    let ports = INSIDE.map(|(name, inside)| ContainerPort {
        name: Some(name.to_owned()),
        container_port: inside,
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    });
    let (mut volumes, mut mounts) = of_machine(recipe);
    volumes.push(Volume {
        name: DATA.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: name(&spec.id),
            ..PersistentVolumeClaimVolumeSource::default()
        }),
        ..Volume::default()
    });
    mounts.push(VolumeMount {
        name: DATA.to_owned(),
        mount_path: "/data".to_owned(),
        ..VolumeMount::default()
    });
    Pod {
        metadata: metadata(spec, recipe),
        spec: Some(PodSpec {
            hostname: Some("cloudphone".into()),
            restart_policy: Some("Never".into()),
            termination_grace_period_seconds: Some(STOP_GRACE_SECONDS.into()),
            // A phone has no business with the cluster.
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            containers: vec![Container {
                name: "android".to_owned(),
                image: Some(recipe.image.clone()),
                args: recipe.boot(spec),
                env: Some(variables.into()),
                ports: Some(ports.into()),
                resources: Some(ResourceRequirements {
                    limits: Some(amounts(millis)),
                    requests: Some(amounts(requested)),
                    ..ResourceRequirements::default()
                }),
                security_context: Some(security(recipe)),
                volume_mounts: Some(mounts),
                ..Container::default()
            }],
            volumes: Some(volumes),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn security(recipe: &Recipe) -> SecurityContext {
    let android = &recipe.android;
    let added = (!android.privileged && !android.capabilities.is_empty())
        .then(|| android.capabilities.clone());
    SecurityContext {
        privileged: Some(android.privileged),
        capabilities: added.map(|add| Capabilities {
            add: Some(add),
            ..Capabilities::default()
        }),
        ..SecurityContext::default()
    }
}

/// What a container gets of the machine it runs on, as it does in docker: nothing beyond what is named, and all where it is
/// privileged.
fn of_machine(recipe: &Recipe) -> (Vec<Volume>, Vec<VolumeMount>) {
    let android = &recipe.android;
    if android.privileged {
        return (Vec::new(), Vec::new());
    }
    let devices = android.devices.iter();
    let devices = devices.map(|(there, here)| (there.as_str(), here.as_str(), false, "CharDevice"));
    let folders = android.mounts.iter().filter_map(|mount| {
        let (there, rest) = mount.split_once(':')?;
        let (here, mode) = rest.split_once(':').unwrap_or((rest, "rw"));
        Some((there, here, mode == "ro", ""))
    });
    let bound = devices.chain(folders).enumerate();
    bound
        .map(|(number, (there, here, read_only, kind))| {
            let name = format!("machine-{number}");
            let volume = Volume {
                name: name.clone(),
                host_path: Some(HostPathVolumeSource {
                    path: there.to_owned(),
                    type_: Some(kind.to_owned()),
                }),
                ..Volume::default()
            };
            let mount = VolumeMount {
                name,
                mount_path: here.to_owned(),
                read_only: Some(read_only),
                ..VolumeMount::default()
            };
            (volume, mount)
        })
        .unzip()
}

#[cfg(test)]
mod tests {
    use platform::Env;

    use super::*;
    use crate::Config;

    fn spec() -> Spec {
        Spec {
            id: "device-1".parse().unwrap(),
            name: "pixel".into(),
            fence: 7,
            address: [10, 0, 0, 5].into(),
            host: "10.0.0.5".into(),
            ports: PortSet {
                adb: 30_001,
                webrtc: 30_002,
                scrcpy: 30_003,
            },
            cpu_cores: 2,
            memory_mb: 4096,
            storage_mb: 10_240,
            width: 720,
            height: 1280,
            dpi: 240,
            android_version: "11".into(),
            made_of: None,
        }
    }

    fn recipe<const N: usize>(settings: [(&'static str, &'static str); N]) -> Recipe {
        let mut env = Env::of(settings);
        Recipe::new("here", &Config::from_env(&mut env))
    }

    #[test]
    fn a_pod_boots_android_with_what_the_device_and_the_settings_say() {
        let recipe = recipe([
            ("DEVICE_CAPABILITIES", "SYS_ADMIN"),
            ("DEVICE_DEVICES", "/dev/binder:/dev/binder"),
            ("DEVICE_MOUNTS", "/dev/binderfs:/dev/binderfs:ro"),
        ]);

        let pod = pod(&spec(), &recipe, 4.0).spec.unwrap();

        let container = &pod.containers[0];
        let boot = container.args.as_ref().unwrap();
        assert!(boot.contains(&"androidboot.redroid_width=720".to_owned()));
        let resources = container.resources.as_ref().unwrap();
        let amount = |of: &Option<BTreeMap<String, Quantity>>, what: &str| {
            of.as_ref().unwrap()[what].0.clone()
        };
        assert_eq!(amount(&resources.limits, "cpu"), "2000m");
        assert_eq!(amount(&resources.requests, "cpu"), "500m");
        assert_eq!(amount(&resources.limits, "memory"), "4096Mi");
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(security.privileged, Some(false));
        let added = security.capabilities.as_ref().unwrap().add.as_ref();
        assert_eq!(added.unwrap(), &["SYS_ADMIN"]);
        let mounts: Vec<_> = container.volume_mounts.iter().flatten().collect();
        let mounts = mounts
            .iter()
            .map(|mount| (&*mount.mount_path, mount.read_only == Some(true)));
        let expected = [
            ("/dev/binder", false),
            ("/dev/binderfs", true),
            ("/data", false),
        ];
        assert_eq!(mounts.collect::<Vec<_>>(), expected);
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!(pod.restart_policy.as_deref(), Some("Never"));
    }

    #[test]
    fn a_service_has_the_leased_ports_and_they_are_read_again() {
        let service = service(&spec(), &recipe([]));
        assert_eq!(node_ports(&service), Some(spec().ports));
    }
}
