//! What devices use: measured by whoever works on them, once a slot in the whole cluster, and kept coarser the older it is.

pub mod api;
pub mod collect;
pub mod db;
pub mod heartbeat;
pub mod jobs;
pub mod storage;

/// What a runtime counts of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counted {
    /// Processor time since it last started, in nanoseconds.
    pub cpu: i64,
    /// Processor cores in use at the moment, where the runtime tells that and counts no time.
    pub cores: Option<f64>,
    /// Memory in use.
    pub memory_mb: f64,
    /// Storage in use, where the runtime knows it at once.
    pub storage_mb: Option<f64>,
    /// Bytes that it received since it last started.
    pub rx: i64,
    /// Bytes that it sent since it last started.
    pub tx: i64,
}

/// What was counted before, and when.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    /// Milliseconds since then; `None` where nothing was.
    pub milliseconds: Option<i64>,
    /// See [`Counted::cpu`].
    pub cpu: i64,
    /// See [`Counted::rx`].
    pub rx: i64,
    /// See [`Counted::tx`].
    pub tx: i64,
}

/// What a device used since it was last measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Used {
    /// Percent of its cores.
    pub cpu_usage: f64,
    /// Bytes that it received.
    pub rx: i64,
    /// Bytes that it sent.
    pub tx: i64,
}

/// What lies between two measurements of a device with so many cores. A counter that is lower than before has begun anew.
pub fn between(before: &Before, now: &Counted, cores: i32) -> Used {
    let grown = |before: i64, now: i64| if now < before { now } else { now - before };
    let at_once =
        (now.cores).map(|used| (used * 100.0 / f64::from(cores.max(1))).clamp(0.0, 100.0));
    let Some(milliseconds) = before.milliseconds else {
        return Used {
            cpu_usage: at_once.unwrap_or_default(),
            rx: 0,
            tx: 0,
        };
    };
    let available = milliseconds.max(0) as f64 * 1_000_000.0 * f64::from(cores.max(1));
    let cpu_usage = match available > 0.0 {
        true => grown(before.cpu, now.cpu) as f64 * 100.0 / available,
        false => 0.0,
    };
    Used {
        cpu_usage: at_once.unwrap_or(cpu_usage.clamp(0.0, 100.0)),
        rx: grown(before.rx, now.rx).max(0),
        tx: grown(before.tx, now.tx).max(0),
    }
}

/// How much of what there is, in percent.
pub fn percent(used: f64, of: i32) -> f64 {
    match of {
        0 => 0.0,
        of => (used * 100.0 / f64::from(of)).clamp(0.0, 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_and_a_counter_that_fell_has_begun_anew() {
        let counted = |cpu, rx| Counted {
            cpu,
            rx,
            tx: rx,
            ..Counted::default()
        };
        let before = |milliseconds, cpu, rx| Before {
            milliseconds,
            cpu,
            rx,
            tx: rx,
        };
        for (before, now, expected) in [
            // Two cores for a second, half of their time.
            (
                before(Some(1_000), 5, 100),
                counted(1_000_000_005, 350),
                (50.0, 250),
            ),
            (before(None, 0, 0), counted(1_000_000_000, 350), (0.0, 0)),
            (before(Some(0), 0, 0), counted(1, 350), (0.0, 350)),
            (
                before(Some(1_000), 9_000_000_000, 900),
                counted(200_000_000, 50),
                (10.0, 50),
            ),
            (before(Some(1), 0, 0), counted(i64::MAX, 0), (100.0, 0)),
        ] {
            let used = between(&before, &now, 2);
            assert_eq!((used.cpu_usage, used.rx), expected, "{before:?} {now:?}");
        }
        let told = Counted {
            cores: Some(0.5),
            ..Counted::default()
        };
        for milliseconds in [None, Some(1_000)] {
            assert_eq!(
                between(&before(milliseconds, 0, 0), &told, 2).cpu_usage,
                25.0
            );
        }
        assert_eq!(
            (percent(512.0, 2_048), percent(9.0, 0), percent(9.0, 3)),
            (25.0, 0.0, 100.0)
        );
    }
}
