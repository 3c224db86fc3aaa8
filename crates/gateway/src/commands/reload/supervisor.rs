//! Who would start a replica again by itself, and what to use there.

use super::process::{Process, unit};

/// What looks after a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Supervisor {
    /// A pod's container.
    Kubernetes,
    /// An application of PM2, by name.
    Pm2(String),
    /// A unit of systemd, where it can be told which.
    Systemd(Option<String>),
    /// A container's first process.
    Container,
}

impl Supervisor {
    /// What looks after a replica, as far as can be told.
    pub fn of(process: &Process) -> Option<Self> {
        let variable = |name: &str| {
            let value = process.variable(name)?;
            Some(value.to_string_lossy().into_owned())
        };
        Self::told(process.pid(), variable, unit(process.pid()))
    }

    fn told(
        pid: u32,
        variable: impl Fn(&str) -> Option<String>,
        unit: Option<String>,
    ) -> Option<Self> {
        let has = |name| variable(name).is_some_and(|value| !value.is_empty());
        if has("KUBERNETES_SERVICE_HOST") {
            return Some(Self::Kubernetes);
        }
        if has("pm_id") || has("NODE_CHANNEL_FD") {
            let name = variable("name").unwrap_or_else(|| "all".to_owned());
            return Some(Self::Pm2(name));
        }
        if has("NOTIFY_SOCKET") || has("LISTEN_PID") || unit.is_some() {
            return Some(Self::Systemd(unit));
        }
        (pid == 1).then_some(Self::Container)
    }

    /// Whose it is, and what restarts replicas there without losing a request.
    pub fn advice(&self) -> String {
        match self {
            Self::Kubernetes => {
                "a pod of Kubernetes: use `kubectl rollout restart` on its Deployment, which waits \
                for /health/readiness"
                    .to_owned()
            }
            Self::Pm2(name) => format!(
                "an application of PM2: use `pm2 reload {name} --parallel 1`, with wait_ready: true and listen_timeout: 90000 in \
                 its ecosystem file"
            ),
            Self::Systemd(unit) => {
                let unit = unit.as_deref().unwrap_or("UNIT");
                format!(
                    "a service of systemd: use `systemctl restart {unit}` for one unit after the other, which waits \
                     for the readiness of a Type=notify service"
                )
            }
            Self::Container => {
                "the first process of a container, which would end with it: restart one container \
                after the other, and wait for /health/readiness"
                    .to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_would_start_a_process_again_is_named() {
        let unit = || Some("cloudphone@1.service".to_owned());
        for (pid, variables, unit, supervisor, command) in [
            (9, &[][..], None, None, ""),
            (
                9,
                &[("KUBERNETES_SERVICE_HOST", "10.0.0.1")],
                None,
                Some(Supervisor::Kubernetes),
                "kubectl rollout restart",
            ),
            (
                9,
                &[("pm_id", "0"), ("name", "phones")],
                None,
                Some(Supervisor::Pm2("phones".to_owned())),
                "pm2 reload phones",
            ),
            (
                9,
                &[("NOTIFY_SOCKET", "/run/systemd/notify")],
                unit(),
                Some(Supervisor::Systemd(unit())),
                "systemctl restart cloudphone@1.service",
            ),
            (
                9,
                &[("LISTEN_PID", "9")],
                None,
                Some(Supervisor::Systemd(None)),
                "systemctl restart",
            ),
            (9, &[("NOTIFY_SOCKET", "")], None, None, ""),
            (1, &[], None, Some(Supervisor::Container), "container"),
        ] {
            let variable = |name: &str| {
                let known = variables.iter().find(|(known, _)| *known == name)?;
                Some(known.1.to_owned())
            };

            let told = Supervisor::told(pid, variable, unit);

            let advice = told.as_ref().map(Supervisor::advice).unwrap_or_default();
            assert!(advice.contains(command), "{advice}");
            assert_eq!(told, supervisor);
        }
    }
}
