//! Who would start a replica again by itself, and what to use there.

use super::process::{Process, ancestors, unit};

/// Programs that start what they are told to and leave it alone, by their names in `/proc/PID/comm`.
const LEAVES_ALONE: [&str; 17] = [
    "ash",
    "bash",
    "csh",
    "dash",
    "fish",
    "ksh",
    "login",
    "mksh",
    "screen",
    "sh",
    "su",
    "sudo",
    "tcsh",
    "tmux: server",
    "xonsh",
    "yash",
    "zsh",
];
/// The first process of a system, or the manager of a user's units, which leave orphans alone.
const INIT: [&str; 2] = ["systemd", "init"];

/// What looks after a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Supervisor {
    /// A pod's container.
    Kubernetes,
    /// An application of PM2, by name.
    Pm2(String),
    /// A unit of systemd, where it can be told which.
    Systemd(Option<String>),
    /// A program of supervisord.
    Supervisord(Option<String>),
    /// A container's first process, or one that it runs for.
    Container,
    /// A child of a program that may be meant to start it again.
    Parent(String),
}

impl Supervisor {
    /// What looks after a replica, as far as can be told.
    pub fn of(process: &Process) -> Option<Self> {
        let variable = |name: &str| {
            let value = process.variable(name)?;
            Some(value.to_string_lossy().into_owned())
        };
        let pid = process.pid();
        Self::told(pid, variable, unit(pid), &ancestors(pid))
    }

    fn told(
        pid: u32,
        variable: impl Fn(&str) -> Option<String>,
        unit: Option<String>,
        ancestors: &[(u32, String)],
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
        if has("SUPERVISOR_ENABLED") {
            return Some(Self::Supervisord(variable("SUPERVISOR_PROCESS_NAME")));
        }
        let is_init = |name: &str| INIT.contains(&name);
        let first = ancestors.iter().find(|(pid, _)| *pid == 1);
        if pid == 1 || first.is_some_and(|(_, name)| !is_init(name)) {
            return Some(Self::Container);
        }
        let (parent, name) = ancestors.first()?;
        let is_alone = is_init(name) || LEAVES_ALONE.contains(&name.as_str());
        (!is_alone).then(|| Self::Parent(format!("{name}, pid {parent}")))
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
                "what a container runs, which would end with it: restart one container after the other, and wait for \
                 /health/readiness"
                    .to_owned()
            }
            Self::Supervisord(name) => {
                let name = name.as_deref().unwrap_or("NAME");
                format!(
                    "a program of supervisord: use `supervisorctl restart {name}` for one program after the other and \
                     wait for /health/readiness in between"
                )
            }
            Self::Parent(name) => {
                format!("a child of {name}, which may start it again or end with it: use that")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_would_start_a_process_again_is_named() {
        let service = || Some("cloudphone@1.service".to_owned());
        let init = (1, "systemd");
        let shell = [(7, "bash"), (5, "sshd"), init];
        let orphan = [init];
        for (pid, variables, unit, ancestors, command) in [
            (9, &[][..], None, &shell[..], ""),
            (9, &[], None, &orphan, ""),
            (9, &[], None, &[(4, "systemd"), init], ""),
            (9, &[], None, &[(7, "bash")], ""),
            (9, &[], None, &[(4, "runsv"), init], "child of runsv, pid 4"),
            (9, &[], None, &[(1, "docker-init")], "container"),
            (9, &[], None, &[(7, "sh"), (1, "tini")], "container"),
            (1, &[], None, &[], "container"),
            (
                9,
                &[("KUBERNETES_SERVICE_HOST", "10.0.0.1")],
                None,
                &orphan,
                "kubectl rollout restart",
            ),
            (
                9,
                &[("pm_id", "0"), ("name", "phones")],
                None,
                &orphan,
                "pm2 reload phones",
            ),
            (
                9,
                &[
                    ("SUPERVISOR_ENABLED", "1"),
                    ("SUPERVISOR_PROCESS_NAME", "phones"),
                ],
                None,
                &[(4, "supervisord"), init],
                "supervisorctl restart phones",
            ),
            (
                9,
                &[("NOTIFY_SOCKET", "/run/systemd/notify")],
                service(),
                &orphan,
                "systemctl restart cloudphone@1.service",
            ),
            (
                9,
                &[("LISTEN_PID", "9")],
                None,
                &orphan,
                "systemctl restart UNIT",
            ),
            (9, &[("NOTIFY_SOCKET", "")], None, &orphan, ""),
        ] {
            let variable = |name: &str| {
                let known = variables.iter().find(|(known, _)| *known == name)?;
                Some(known.1.to_owned())
            };
            let ancestors: Vec<(u32, String)> = ancestors
                .iter()
                .map(|(pid, name)| (*pid, (*name).to_owned()))
                .collect();

            let told = Supervisor::told(pid, variable, unit, &ancestors);

            let advice = told.as_ref().map(Supervisor::advice).unwrap_or_default();
            assert!(advice.contains(command), "{advice}");
            assert_eq!(
                told.is_some(),
                !command.is_empty(),
                "{ancestors:?}: {advice}"
            );
        }
    }
}
