//! Replicas that no test started: successors, which outlive the command that started them.

use std::process::{Child, Command, Stdio};

use testkit::Cluster;

/// Kills the program in $2 wherever it runs with the home in $1, but for the keeper of the stores, which leaves last.
const SCRIPT: &str = r#"
read _
for process in /proc/[0-9]*; do
  [ "$(readlink "$process/exe")" = "$2" ] || continue
  tr '\0' '\n' <"$process/environ" | grep -qxF "CLOUDPHONE_HOME=$1" || continue
  tr '\0' '\n' <"$process/cmdline" | grep -qxF stores && continue
  kill -KILL "${process#/proc/}"
done 2>/dev/null
"#;

/// Ends all replicas of a cluster with this value, and also when the test's process is killed.
pub struct Leftovers(Child);

impl Leftovers {
    /// Ends those of this cluster; make it after the cluster, so that it goes before.
    ///
    /// # Errors
    /// Where the one who waits for the end cannot be started.
    pub fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        // In a session of its own, for what kills a test kills its group.
        let mut command = Command::new("setsid");
        command
            .args(["sh", "-c", SCRIPT, "sh"])
            .args([cluster.home(), &testkit::gateway_program()?])
            .stdin(Stdio::piped());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
