//! Whether a cluster lets us do what devices need.

use contracts::DeviceId;
use futures::future::try_join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;

use super::{Kubernetes, objects, refused};
use crate::node::check::{Check, Standing};
use crate::runtime::{RuntimeError, Spec};

/// What a replica does in the namespace.
const NEEDED: [(&str, &[&str]); 3] = [
    ("pods", &["create", "get", "list", "delete"]),
    ("services", &["create", "get", "list", "update", "delete"]),
    (
        "persistentvolumeclaims",
        &["create", "get", "list", "patch", "delete"],
    ),
];

impl Kubernetes {
    /// What can be said of the cluster: its version, what we may do there, and whether its ports are ours.
    pub(super) async fn examine(&self) -> Result<Vec<Check>, RuntimeError> {
        let tried = "ask the cluster about itself";
        let cluster = self.cluster().await?;
        let version = self.call(tried, cluster.client.apiserver_version()).await?;
        let version = version.map_err(|status| refused(tried, &status))?;
        let found = format!(
            "Kubernetes {}, namespace {}",
            version.git_version, cluster.namespace
        );
        let mut checks = vec![Check::new("engine", Standing::Ok, found, "")];
        checks.push(self.permissions().await?);
        checks.push(self.ports().await?);
        let advice =
            "look on its machines: binder, fs.inotify.max_user_instances=8192, fs.file-max=2097152";
        let found = "the machines of a cluster cannot be looked into from here";
        checks.push(Check::new("kernel", Standing::Unknown, found, advice));
        Ok(checks)
    }

    async fn permissions(&self) -> Result<Check, RuntimeError> {
        let cluster = self.cluster().await?;
        let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
        let needed = NEEDED
            .into_iter()
            .flat_map(|(resource, verbs)| verbs.iter().map(move |verb| (*verb, resource)));
        let asked = needed.map(async |(verb, resource)| {
            let attributes = ResourceAttributes {
                namespace: Some(cluster.namespace.clone()),
                resource: Some(resource.to_owned()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            };
            let may = self.may(&reviews, attributes).await?;
            Ok::<_, RuntimeError>((!may).then(|| format!("{verb} {resource}")))
        });
        let answers = try_join_all(asked).await?;
        let missing: Vec<String> = answers.into_iter().flatten().collect();
        Ok(match missing.is_empty() {
            true => Check::new("permissions", Standing::Ok, "all that is needed", ""),
            false => Check::new(
                "permissions",
                Standing::Fail,
                format!("may not {}", missing.join(", ")),
                "give the account the role that the README names",
            ),
        })
    }

    async fn may(
        &self,
        reviews: &Api<SelfSubjectAccessReview>,
        attributes: ResourceAttributes,
    ) -> Result<bool, RuntimeError> {
        let tried = "ask the cluster what we may do";
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let params = PostParams::default();
        let answer = self.call(tried, reviews.create(&params, &review)).await?;
        let answer = answer.map_err(|status| refused(tried, &status))?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// Whether the cluster gives out the ports that devices are leased: the ends of the ranges are tried without effect.
    async fn ports(&self) -> Result<Check, RuntimeError> {
        let tried = "try the ports of the cluster";
        let services = self.cluster().await?.services;
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        for ports in self.recipe.port_ends() {
            let service = objects::service(&probe(ports), &self.recipe);
            match self.call(tried, services.create(&params, &service)).await? {
                // Somebody has one: it is one that is given out.
                Err(status) if status.message.contains("already allocated") => {}
                Err(status) => {
                    let advice = "set DEVICE_ADB_PORTS, DEVICE_WEBRTC_PORTS and DEVICE_SCRCPY_PORTS to parts of the cluster's range of node ports, 30000-32767 by default";
                    let found = status.message;
                    return Ok(Check::new("ports", Standing::Fail, found, advice));
                }
                Ok(_) => {}
            }
        }
        let found = "the ranges are within those of the cluster";
        Ok(Check::new("ports", Standing::Ok, found, ""))
    }
}

/// A device that there is not.
fn probe(ports: coordination::PortSet) -> Spec {
    Spec {
        id: DeviceId::new(),
        name: "probe".into(),
        fence: 0,
        address: [0, 0, 0, 0].into(),
        host: String::new(),
        ports,
        cpu_cores: 1,
        memory_mb: 512,
        storage_mb: 1024,
        width: 0,
        height: 0,
        dpi: 0,
        android_version: String::new(),
        made_of: None,
    }
}
