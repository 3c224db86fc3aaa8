//! Where a process comes from: itself and the processes above it, as the kernel tells of them.

use std::fs;

/// More than there are above each other in any sane system.
const MOST: usize = 64;

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// The process that started it, or that took it in; 0 where that is none of this container's.
    pub parent: u32,
    /// The process group: a job of a shell.
    pub group: u32,
    /// The session: what was started from one terminal, or for one service.
    pub session: u32,
    /// When it began, in ticks of the kernel.
    pub began: u64,
    /// Whether it only waits to be forgotten.
    pub is_dead: bool,
}

/// A process of a lineage.
#[derive(Clone, Debug)]
pub struct Kin {
    /// Its number.
    pub pid: u32,
    /// The name of its program.
    pub name: String,
    /// What the kernel says.
    pub stat: Stat,
}

impl Stat {
    /// Of a process that is there.
    pub fn of(pid: u32) -> Option<Self> {
        Self::read(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn read(text: &str) -> Option<Self> {
        // The name before may hold anything, brackets too.
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let mut number = || fields.next()?.parse().ok();
        let (parent, group, session) = (number()?, number()?, number()?);
        // The 22nd of all; the session is the sixth.
        let began = fields.nth(15)?.parse().ok()?;
        Some(Self {
            parent,
            group,
            session,
            began,
            is_dead: matches!(state, "Z" | "X"),
        })
    }
}

/// A process and those above it, itself first.
pub fn lineage(pid: u32) -> Vec<Kin> {
    let kin = |pid: u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(Kin {
            pid,
            name: name.trim_end().to_owned(),
            stat: Stat::of(pid)?,
        })
    };
    let above = |one: &Kin| kin(one.stat.parent).filter(|above| above.pid > 0);
    std::iter::successors(kin(pid), above).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_when_it_began() {
        let stat = "7 (a) b) S 2 3 4 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 4711 12 13";

        let read = Stat::read(stat).unwrap();

        assert_eq!((read.parent, read.group, read.session), (2, 3, 4));
        assert_eq!((read.began, read.is_dead), (4711, false));
        assert!(Stat::read("7 (a) Z 1").is_none());
    }

    #[test]
    fn this_very_process_has_its_parent_above_it() {
        let pid = std::process::id();

        let lineage = lineage(pid);

        assert_eq!(lineage[0].pid, pid);
        assert_eq!(lineage[1].pid, std::os::unix::process::parent_id());
        assert!(
            lineage
                .windows(2)
                .all(|two| two[0].stat.parent == two[1].pid)
        );
    }
}
