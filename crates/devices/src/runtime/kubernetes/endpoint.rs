//! Where a node of kubernetes is: a namespace of a cluster, and how a replica reaches it.

use std::path::PathBuf;

use anyhow::bail;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::SLOW;

/// A namespace of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    way: Way,
    /// The namespace; without it that of the context, as for `kubectl`.
    namespace: Option<String>,
    /// The class of the claims; without it the cluster's default.
    pub storage_class: Option<String>,
}

/// How the cluster is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// As the service account of the pod that the replica runs in.
    InCluster,
    /// As a file says, in one of its contexts or the current one.
    Kubeconfig {
        path: PathBuf,
        context: Option<String>,
    },
}

impl Endpoint {
    /// Reads `in-cluster://namespace` or `kubeconfig:///path?context=name&namespace=name`, both with
    /// `storageClass=name` where it is not the default one.
    pub fn parse(text: &str) -> Option<Self> {
        let (way, rest) = text.split_once("://")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut context, mut namespace, mut storage_class) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(_, value)| !value.is_empty())?;
            let known = match key {
                "context" => &mut context,
                "namespace" => &mut namespace,
                "storageClass" => &mut storage_class,
                _ => return None,
            };
            if known.replace(value.to_owned()).is_some() {
                return None;
            }
        }
        let way = match way {
            "in-cluster" if context.is_none() && namespace.is_none() => {
                namespace = Some(place.to_owned());
                Way::InCluster
            }
            "kubeconfig" if place.starts_with('/') && place.len() > 1 => Way::Kubeconfig {
                path: place.into(),
                context,
            },
            _ => return None,
        };
        let named = [&namespace, &storage_class];
        let valid = named.into_iter().flatten().all(|name| is_name(name));
        valid.then_some(Self {
            way,
            namespace,
            storage_class,
        })
    }

    /// A client that connects when it is first used, and the namespace. Files are read now.
    ///
    /// # Errors
    /// Where what it needs is not on this machine, or is wrong.
    pub async fn client(&self) -> anyhow::Result<(Client, String)> {
        let mut config = match &self.way {
            Way::InCluster => Config::incluster()?,
            Way::Kubeconfig { path, context } => {
                let file = path.clone();
                let read = tokio::task::spawn_blocking(move || Kubeconfig::read_from(file));
                let options = KubeConfigOptions {
                    context: context.clone(),
                    ..KubeConfigOptions::default()
                };
                let file = read.await??;
                runs_nothing(&file)?;
                Config::from_custom_kubeconfig(file, &options).await?
            }
        };
        // Whoever asks tries again by himself, and has a deadline of his own.
        config.default_retry = false;
        config.connect_timeout = Some(SLOW);
        config.write_timeout = Some(SLOW);
        let namespace = self.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        Ok((Client::try_from(config)?, namespace))
    }
}

/// Refuses a file that names programs: who may set the endpoint of a node would run them with the rights of the replica.
fn runs_nothing(file: &Kubeconfig) -> anyhow::Result<()> {
    let mut users = file.auth_infos.iter();
    let found = users.find(|user| {
        let auth = user.auth_info.as_ref();
        auth.is_some_and(|auth| auth.exec.is_some() || auth.auth_provider.is_some())
    });
    match found {
        None => Ok(()),
        Some(user) => bail!(
            "user {} of the kubeconfig gets its credentials from a program (exec or auth-provider), and none is run: give it a token, a token file or a certificate",
            user.name
        ),
    }
}

/// Whether a text is a name of Kubernetes (RFC 1123; a class may have dots).
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| plain(*byte) || b"-.".contains(byte))
        && bytes.first().is_some_and(|byte| plain(*byte))
        && bytes.last().is_some_and(|byte| plain(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_and_the_way_there_are_read() {
        let inside = Endpoint::parse("in-cluster://phones?storageClass=fast").unwrap();
        assert_eq!(inside.way, Way::InCluster);
        assert_eq!(inside.namespace.as_deref(), Some("phones"));
        assert_eq!(inside.storage_class.as_deref(), Some("fast"));

        let outside =
            Endpoint::parse("kubeconfig:///etc/kube/config?context=admin@prod&namespace=phones")
                .unwrap();
        let way = Way::Kubeconfig {
            path: "/etc/kube/config".into(),
            context: Some("admin@prod".into()),
        };
        assert_eq!((outside.way, outside.storage_class), (way, None));
    }

    #[test]
    fn a_file_that_names_programs_is_refused() {
        let with = |auth: &str| {
            let file = format!("users: [{{name: ops, user: {{{auth}}}}}]");
            runs_nothing(&Kubeconfig::from_yaml(&file).unwrap())
        };

        with("tokenFile: /run/token").unwrap();
        for auth in [
            "exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/sh}",
            "auth-provider: {name: gcp, config: {cmd-path: /bin/sh}}",
        ] {
            let error = with(auth).unwrap_err().to_string();
            assert!(error.contains("user ops"), "{error}");
        }
    }

    #[test]
    fn what_is_no_namespace_of_a_cluster_is_refused() {
        for text in [
            "",
            "phones",
            "in-cluster://",
            "in-cluster://Phones",
            "in-cluster://phones?context=a",
            "in-cluster://phones?color=red",
            "kubeconfig://config",
            "kubeconfig:///config?namespace=",
            "kubeconfig:///config?context=a&context=b",
            "https://10.0.0.1:6443",
        ] {
            assert_eq!(Endpoint::parse(text), None, "{text}");
        }
    }
}
