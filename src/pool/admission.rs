//! Admission: whether the host can carry another container, by its memory and CPUs as `/proc` shows them.
//!
//! Memory: `MemAvailable` (proc_meminfo(5)) less what containers under creation will need, and the share of time in
//! which some process waited for memory (PSI, Documentation/accounting/psi.rst). CPU: the load average per CPU and,
//! where the kernel has PSI, the share of time in which some process waited for a CPU. Both must be high. PSI alone is
//! not enough, since a process that waits for its own quota counts as waiting; nor is the load average, since it still
//! counts processes that ended within the last minute.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Age up to which readings of `/proc` are used again: reading them costs some 50 µs.
const FRESH: Duration = Duration::from_millis(50);

/// Limits of admission; see `[admission]` in the configuration.
#[derive(Debug, Clone)]
pub struct AdmissionSettings {
    /// Directory of `meminfo`, `loadavg` and `pressure/`: `/proc`.
    pub proc: PathBuf,
    /// Number of CPUs of the host.
    pub cpus: usize,
    /// Memory that has to stay available, bytes; 0 switches all checks of memory off.
    pub min_available_bytes: u64,
    /// Highest share of the last 10 s in which some process may have waited for memory, percent.
    pub max_memory_pressure: f64,
    /// Highest share of the last 10 s in which some process may have waited for a CPU, percent.
    pub max_cpu_pressure: f64,
    /// Highest load average of the last minute per CPU; 0 switches all checks of CPUs off.
    pub max_load_per_cpu: f64,
}

/// Why the host takes no container now.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Too little memory is available.
    #[error(
        "the host has {available_mib} MiB of memory available, but {needed_mib} MiB are needed and {reserved_mib} MiB \
         are to stay free (`admission.min_available_bytes`)"
    )]
    Memory {
        /// `MemAvailable` less the reservations of containers under creation, MiB.
        available_mib: u64,
        /// Memory needed for this container, MiB.
        needed_mib: u64,
        /// Memory that has to stay available, MiB.
        reserved_mib: u64,
    },
    /// Processes wait for memory too much of the time.
    #[error(
        "processes waited for memory for {percent:.0} % of the last 10 s, more than {max:.0} % \
         (`admission.max_memory_pressure_percent`)"
    )]
    MemoryPressure {
        /// Share of the last 10 s, percent.
        percent: f64,
        /// Limit, percent.
        max: f64,
    },
    /// More processes want to run than the CPUs can serve.
    #[error("the host's load is {load:.1} per CPU, more than {max:.1} (`admission.max_load_per_cpu`)")]
    Cpu {
        /// Load average of the last minute per CPU.
        load: f64,
        /// Limit.
        max: f64,
    },
}

impl Refusal {
    /// Value of the metric's label `reason`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Memory { .. } => "memory",
            Self::MemoryPressure { .. } => "memory_pressure",
            Self::Cpu { .. } => "cpu",
        }
    }
}

/// One reading of `/proc`; a value is `None` when it cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Readings {
    /// `MemAvailable`, bytes.
    available: Option<u64>,
    /// Load average of the last minute.
    load: Option<f64>,
    /// `some avg10` of memory pressure, percent; `None` without PSI.
    memory_pressure: Option<f64>,
    /// `some avg10` of CPU pressure, percent; `None` without PSI.
    cpu_pressure: Option<f64>,
}

/// Decides about admission. One per daemon.
#[derive(Debug)]
pub struct Admission {
    settings: AdmissionSettings,
    reserved: Arc<AtomicU64>,
    last: Mutex<Option<(Instant, Readings)>>,
}

/// Memory reserved for a container under creation. Dropped once the container exists: from then on the kernel counts
/// it.
#[derive(Debug)]
pub struct Reservation {
    bytes: u64,
    reserved: Arc<AtomicU64>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Admission {
    /// Creates the check with these limits. A value that cannot be read is not checked; a log line says so once, here.
    pub fn new(settings: AdmissionSettings) -> Self {
        let this = Self { settings, reserved: Arc::default(), last: Mutex::default() };
        let readings = this.read();
        if readings.available.is_none() || readings.load.is_none() {
            let proc = this.settings.proc.display();
            tracing::warn!("{proc}/meminfo or {proc}/loadavg cannot be read: memory or load is not looked at");
        }
        if readings.memory_pressure.is_none() {
            tracing::info!("the kernel has no pressure stall information: memory and load alone decide");
        }
        this
    }

    /// Reserves memory for a container that needs `bytes`, if the host can carry the container.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn admit(&self, bytes: u64) -> Result<Reservation, Refusal> {
        // Reserve before checking, so that two creations at once cannot both use room that is enough for one.
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        let reservation = Reservation { bytes, reserved: Arc::clone(&self.reserved) };
        self.check(self.reserved.load(Ordering::Relaxed), bytes)?;
        Ok(reservation)
    }

    fn check(&self, reserved: u64, needed: u64) -> Result<(), Refusal> {
        let settings = &self.settings;
        let readings = self.readings();
        if settings.min_available_bytes > 0 {
            if let Some(available) = readings.available
                && available.saturating_sub(reserved) < settings.min_available_bytes
            {
                return Err(Refusal::Memory {
                    available_mib: available.saturating_sub(reserved.saturating_sub(needed)) >> 20,
                    needed_mib: needed.div_ceil(1 << 20),
                    reserved_mib: settings.min_available_bytes >> 20,
                });
            }
            let max = settings.max_memory_pressure;
            if let Some(percent) = readings.memory_pressure.filter(|percent| *percent > max) {
                return Err(Refusal::MemoryPressure { percent, max });
            }
        }
        let max = settings.max_load_per_cpu;
        let load = readings.load.map_or(0.0, |load| load / settings.cpus.max(1) as f64);
        let waiting = readings.cpu_pressure.is_none_or(|percent| percent > settings.max_cpu_pressure);
        if max > 0.0 && load > max && waiting {
            return Err(Refusal::Cpu { load, max });
        }
        Ok(())
    }

    fn readings(&self) -> Readings {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((at, readings)) if now.duration_since(at) < FRESH => readings,
            _ => {
                let readings = self.read();
                *last = Some((now, readings));
                readings
            }
        }
    }

    fn read(&self) -> Readings {
        // Blocking reads are fine here: files of procfs answer at once.
        let text = |name: &str| std::fs::read_to_string(self.settings.proc.join(name)).unwrap_or_default();
        Readings {
            available: available(&text("meminfo")),
            load: text("loadavg").split(' ').next().and_then(|first| first.parse().ok()),
            memory_pressure: some_avg10(&text("pressure/memory")),
            cpu_pressure: some_avg10(&text("pressure/cpu")),
        }
    }
}

/// `MemAvailable:   123 kB`
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// `some avg10=1.53 avg60=0.87 avg300=0.30 total=1234`
fn some_avg10(pressure: &str) -> Option<f64> {
    let line = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split(' ').find_map(|field| field.strip_prefix("avg10=")).and_then(|value| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::{Admission, AdmissionSettings, Refusal};

    const MIB: u64 = 1 << 20;

    struct Proc(TempDir);

    impl Proc {
        /// 1,000 MiB available, nothing to do.
        fn new() -> Self {
            let this = Self(tempfile::tempdir().unwrap());
            std::fs::create_dir(this.0.path().join("pressure")).unwrap();
            this.available(1000).load("0.50").pressure("memory", "0.00").pressure("cpu", "0.00");
            this
        }

        fn write(&self, name: &str, text: &str) -> &Self {
            std::fs::write(self.0.path().join(name), text).unwrap();
            self
        }

        fn available(&self, mib: u64) -> &Self {
            let kib = mib * 1024;
            self.write("meminfo", &format!("MemTotal: 8000000 kB\nMemFree: 5 kB\nMemAvailable:   {kib} kB\n"))
        }

        fn load(&self, load: &str) -> &Self {
            self.write("loadavg", &format!("{load} 0.10 0.10 1/165 14472\n"))
        }

        fn pressure(&self, of: &str, avg10: &str) -> &Self {
            let text = format!(
                "some avg10={avg10} avg60=1.00 avg300=1.00 total=1\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=1\n"
            );
            self.write(&format!("pressure/{of}"), &text)
        }

        fn admission(&self) -> Admission {
            admission(self.0.path())
        }
    }

    fn admission(proc: &Path) -> Admission {
        Admission::new(AdmissionSettings {
            proc: proc.to_owned(),
            cpus: 2,
            min_available_bytes: 400 * MIB,
            max_memory_pressure: 20.0,
            max_cpu_pressure: 90.0,
            max_load_per_cpu: 10.0,
        })
    }

    #[test]
    fn a_quiet_host_takes_more() {
        assert!(Proc::new().admission().admit(MIB).is_ok());
    }

    #[test]
    fn memory_stays_free_for_others() {
        let proc = Proc::new();
        let admission = proc.admission();
        assert!(admission.admit(600 * MIB).is_ok(), "exactly what is left");
        let refusal = admission.admit(601 * MIB).unwrap_err();
        assert_eq!(refusal, Refusal::Memory { available_mib: 1000, needed_mib: 601, reserved_mib: 400 });
        let text = refusal.to_string();
        assert!(text.contains("1000 MiB") && text.contains("`admission.min_available_bytes`"), "{text}");
    }

    #[test]
    fn what_is_being_created_counts_until_the_kernel_counts_it() {
        let proc = Proc::new();
        let admission = proc.admission();
        let first = admission.admit(500 * MIB).unwrap();
        let refusal = admission.admit(200 * MIB).unwrap_err();
        assert_eq!(refusal, Refusal::Memory { available_mib: 500, needed_mib: 200, reserved_mib: 400 });
        drop(first);
        assert!(admission.admit(200 * MIB).is_ok(), "and a refusal leaves nothing reserved");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_is_read_again_soon() {
        let proc = Proc::new();
        let admission = proc.admission();
        assert!(admission.admit(MIB).is_ok());
        proc.available(100);
        tokio::time::advance(Duration::from_millis(50)).await;
        assert!(admission.admit(MIB).is_err());
        proc.available(1000);
        tokio::time::advance(Duration::from_millis(50)).await;
        assert!(admission.admit(MIB).is_ok());
    }

    #[test]
    fn waiting_for_memory_is_pressure() {
        let proc = Proc::new();
        assert!(proc.pressure("memory", "20.00").admission().admit(MIB).is_ok());
        let refusal = proc.pressure("memory", "20.01").admission().admit(MIB).unwrap_err();
        assert_eq!(refusal, Refusal::MemoryPressure { percent: 20.01, max: 20.0 });
    }

    #[test]
    fn load_and_waiting_together_are_pressure() {
        let proc = Proc::new();
        assert!(proc.load("30.00").admission().admit(MIB).is_ok(), "it was so, but is not any more");
        assert!(proc.load("1.00").pressure("cpu", "99.00").admission().admit(MIB).is_ok(), "quotas look like this");
        let refusal = proc.load("30.00").admission().admit(MIB).unwrap_err();
        assert_eq!(refusal, Refusal::Cpu { load: 15.0, max: 10.0 });
    }

    #[test]
    fn without_psi_load_decides() {
        let proc = Proc::new();
        std::fs::remove_dir_all(proc.0.path().join("pressure")).unwrap();
        assert!(proc.load("20.00").admission().admit(MIB).is_ok());
        assert!(proc.load("20.10").admission().admit(MIB).is_err());
    }

    #[test]
    fn limits_can_be_switched_off() {
        let proc = Proc::new();
        proc.available(1).load("500.0").pressure("cpu", "99.00").pressure("memory", "99.00");
        let mut admission = proc.admission();
        admission.settings.min_available_bytes = 0;
        admission.settings.max_load_per_cpu = 0.0;
        assert!(admission.admit(MIB).is_ok());
    }

    #[test]
    fn what_cannot_be_read_is_not_checked() {
        assert!(admission(Path::new("/nonexistent")).admit(MIB).is_ok());
        let proc = Proc::new();
        proc.write("meminfo", "nonsense")
            .write("loadavg", "")
            .write("pressure/memory", "some")
            .write("pressure/cpu", "");
        assert!(proc.admission().admit(MIB).is_ok());
    }

    #[test]
    fn this_machine_can_be_read() {
        let admission = admission(Path::new("/proc"));
        let readings = admission.read();
        assert!(readings.available.is_some_and(|bytes| bytes > MIB), "{readings:?}");
        assert!(readings.load.is_some(), "{readings:?}");
        assert_eq!(readings.memory_pressure.is_some(), Path::new("/proc/pressure/memory").exists());
    }
}
