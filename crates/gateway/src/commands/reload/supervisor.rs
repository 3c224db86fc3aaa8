//! Who would start a replica again by itself, and what to use there.

use super::lineage::{Kin, lineage};
use super::process::{Process, unit};

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

/// How long after a container its main process begins at most, in ticks of the kernel: ten seconds.
const AT_ONCE: u64 = 1000;

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
        Self::told(variable, unit(pid), &lineage(pid))
    }

    fn told(
        variable: impl Fn(&str) -> Option<String>,
        unit: Option<String>,
        lineage: &[Kin],
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
        match Runner::of(lineage, has("SHLVL")) {
            Runner::Container => Some(Self::Container),
            Runner::Nobody => None,
            Runner::Parent(parent) => {
                Some(Self::Parent(format!("{}, pid {}", parent.name, parent.pid)))
            }
        }
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

/// For whom a process runs, by those above it.
enum Runner<'a> {
    /// For the container, which ends with it.
    Container,
    /// For nobody: a shell started it, and people look after it.
    Nobody,
    /// For a program that is neither a shell nor the first process.
    Parent(&'a Kin),
}

impl<'a> Runner<'a> {
    /// `by_shell`: whether what it was started with shows that a shell had it in hand.
    fn of(lineage: &'a [Kin], by_shell: bool) -> Self {
        let is_init = |kin: &Kin| INIT.contains(&kin.name.as_str());
        let is_shell = |kin: &Kin| LEAVES_ALONE.contains(&kin.name.as_str());
        let first = lineage.last().filter(|kin| kin.pid == 1 && !is_init(kin));
        // From the process up to the outermost of the shells that run it.
        let shells = lineage.iter().skip(1).take_while(|kin| is_shell(kin));
        let (own, above) = lineage.split_at((1 + shells.count()).min(lineage.len()));
        // A shell that a person sits at makes each command a job, with a group of its own; one that runs a script does not.
        let is_job = own
            .windows(2)
            .any(|two| two[0].stat.group != two[1].stat.group);
        match (own.last(), above.first()) {
            (Some(outermost), _) if outermost.pid == 1 => match is_job {
                true => Self::Nobody,
                false => Self::Container,
            },
            (Some(outermost), Some(parent)) if parent.pid == 1 && first.is_some() => {
                match is_job || is_orphan(outermost, parent, by_shell) {
                    true => Self::Nobody,
                    false => Self::Container,
                }
            }
            (_, Some(parent)) if own.len() == 1 && !is_init(parent) => Self::Parent(parent),
            _ => Self::Nobody,
        }
    }
}

/// Whether a child of a container's first process was left behind by a shell, rather than started by that. It began later
/// than the container, in another session; where the session is its own, a shell left its mark among the variables.
fn is_orphan(child: &Kin, first: &Kin, by_shell: bool) -> bool {
    child.stat.session != first.stat.session
        && child.stat.began > first.stat.began + AT_ONCE
        && (child.stat.session != child.pid || by_shell)
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::lineage::Stat;

    /// A process: number, name, parent, group, session, and when it began.
    fn kin((pid, name, parent, group, session, began): (u32, &str, u32, u32, u32, u64)) -> Kin {
        Kin {
            pid,
            name: name.to_owned(),
            stat: Stat {
                parent,
                group,
                session,
                began,
                is_dead: false,
            },
        }
    }

    fn told(variables: &[(&str, &str)], unit: Option<&str>, lineage: &[Kin]) -> String {
        let variable = |name: &str| {
            let known = variables.iter().find(|(known, _)| *known == name)?;
            Some(known.1.to_owned())
        };
        let told = Supervisor::told(variable, unit.map(str::to_owned), lineage);
        told.as_ref()
            .map_or_else(|| "nobody".to_owned(), Supervisor::advice)
    }

    #[test]
    fn whoever_would_start_a_process_again_is_named() {
        let own = kin((9, "gateway", 1, 9, 9, 5000));
        let init = kin((1, "systemd", 0, 1, 1, 0));
        let orphan = [own.clone(), init.clone()];
        let under = |name| [own.clone(), kin((4, name, 1, 4, 4, 10)), init.clone()];
        let shell = [own.clone(), kin((7, "bash", 5, 7, 7, 90))];
        let unit = Some("cloudphone@1.service");
        for (variables, unit, lineage, expected) in [
            (&[][..], None, &shell[..], "nobody"),
            (&[], None, &orphan, "nobody"),
            (&[], None, &under("systemd"), "nobody"),
            (&[], None, &under("bash"), "nobody"),
            (&[], None, &under("runsv"), "child of runsv, pid 4"),
            (&[], None, std::slice::from_ref(&own), "nobody"),
            (&[], None, &[], "nobody"),
            (
                &[("KUBERNETES_SERVICE_HOST", "10.0.0.1")],
                None,
                &orphan,
                "kubectl rollout restart",
            ),
            (
                &[("pm_id", "0"), ("name", "phones")],
                None,
                &orphan,
                "pm2 reload phones",
            ),
            (
                &[
                    ("SUPERVISOR_ENABLED", "1"),
                    ("SUPERVISOR_PROCESS_NAME", "phones"),
                ],
                None,
                &under("supervisord"),
                "supervisorctl restart phones",
            ),
            (
                &[("NOTIFY_SOCKET", "/run/systemd/notify")],
                unit,
                &orphan,
                "systemctl restart cloudphone@1.service",
            ),
            (
                &[("LISTEN_PID", "9")],
                None,
                &orphan,
                "systemctl restart UNIT",
            ),
            (&[("NOTIFY_SOCKET", "")], None, &orphan, "nobody"),
        ] {
            let told = told(variables, unit, lineage);
            assert!(told.contains(expected), "{lineage:?}: {told}");
        }
    }

    #[test]
    fn what_a_container_runs_is_told_from_what_somebody_started_in_it() {
        let by_shell = &[("SHLVL", "1")][..];
        let tini = || kin((1, "tini", 0, 1, 1, 100));
        let server = || kin((1, "ide-server", 0, 0, 0, 100));
        for (what, variables, lineage, expected) in [
            (
                "the first process",
                &[][..],
                vec![kin((1, "gateway", 0, 1, 1, 100))],
                "container",
            ),
            (
                "its child",
                &[],
                vec![kin((9, "gateway", 1, 9, 1, 101)), tini()],
                "container",
            ),
            // dumb-init gives its child a session; a script that ends by exec leaves its mark.
            (
                "its child apart",
                by_shell,
                vec![kin((9, "gateway", 1, 9, 9, 101)), tini()],
                "container",
            ),
            (
                "of its script",
                by_shell,
                vec![
                    kin((9, "gateway", 7, 7, 1, 900)),
                    kin((7, "sh", 1, 7, 1, 101)),
                    tini(),
                ],
                "container",
            ),
            (
                "of the script that is the first process",
                by_shell,
                vec![
                    kin((9, "gateway", 1, 1, 1, 900)),
                    kin((1, "sh", 0, 1, 1, 100)),
                ],
                "container",
            ),
            (
                "a job of the shell that is the first process",
                by_shell,
                vec![
                    kin((9, "gateway", 1, 9, 1, 900)),
                    kin((1, "bash", 0, 1, 1, 100)),
                ],
                "nobody",
            ),
            (
                "in a shell that joined the container",
                by_shell,
                vec![
                    kin((9, "gateway", 7, 9, 7, 900)),
                    kin((7, "bash", 0, 7, 7, 800)),
                ],
                "nobody",
            ),
            (
                "in a terminal of what runs there",
                by_shell,
                vec![
                    kin((9, "gateway", 7, 9, 7, 900)),
                    kin((7, "bash", 4, 7, 7, 800)),
                    kin((4, "node", 1, 4, 4, 700)),
                    server(),
                ],
                "nobody",
            ),
            (
                "by setsid",
                by_shell,
                vec![kin((9, "gateway", 1, 9, 9, 9000)), server()],
                "nobody",
            ),
            (
                "by nohup",
                by_shell,
                vec![kin((9, "gateway", 1, 8, 8, 9000)), server()],
                "nobody",
            ),
            (
                "anew by the first process",
                &[],
                vec![kin((9, "gateway", 1, 9, 9, 9000)), server()],
                "container",
            ),
            (
                "anew, not apart",
                by_shell,
                vec![kin((9, "gateway", 1, 9, 0, 9000)), server()],
                "container",
            ),
            (
                "by a supervisor",
                &[],
                vec![
                    kin((9, "gateway", 4, 4, 4, 900)),
                    kin((4, "s6-supervise", 1, 4, 4, 101)),
                    tini(),
                ],
                "child of s6-supervise",
            ),
        ] {
            let told = told(variables, None, &lineage);
            assert!(told.contains(expected), "{what}: {told}");
        }
    }
}
