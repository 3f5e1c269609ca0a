//! `thawctl top`: what executions use, and how the pools are, again and again.

mod screen;
mod usage;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use rustix::process::{getpid, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::screen::Screen;
use self::usage::{Look, Row};
use super::ids::short;
use super::table::{age, bytes, table};
use super::{CtlError, Format, exit, view};
use thaw_client::client::Client;
use thaw_client::types::{Pool, Stage};

/// Between the two looks of `--once`, if the interval is not shorter.
const ONCE: Duration = Duration::from_secs(1);

/// Arguments of `thawctl top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
CPU is in percent of one CPU, over the last interval; LIMIT is how much of it the execution may use. THROTTLED is the \
share of its scheduling periods in which it had to wait because the limit was used up. On a terminal q or Ctrl-C leaves; \
elsewhere, and with --batch, the tables are printed one after the other.")]
pub(super) struct TopArgs {
    /// Seconds from one look to the next
    #[arg(long, short, value_name = "SECONDS", default_value_t = 2.0, value_parser = interval)]
    interval: f64,
    /// Show only these executions: ids, or beginnings of them
    #[arg(value_name = "ID", add = super::completion::executions())]
    ids: Vec<String>,
    /// Look once and leave
    #[arg(long, alias = "no-stream")]
    once: bool,
    /// Print the tables one after the other, on a terminal too
    #[arg(long)]
    batch: bool,
    /// Print one JSON object for each look, the same as --format json
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number of seconds from 0.1 to 3600".to_owned()),
    }
}

pub(super) async fn top(client: &Client, args: &TopArgs, format: &Format) -> Result<u8, CtlError> {
    format.no_template("top")?;
    let json = args.json || format.is_json();
    let interval = Duration::from_secs_f64(args.interval);
    if args.once {
        let first = look(client).await?;
        tokio::time::sleep(interval.min(ONCE)).await;
        let (now, pools) = look(client).await?;
        print(json, &now, &args.chosen(now.since(Some(&first.0))), &pools)?;
        return Ok(0);
    }
    let live = !json && !args.batch && io::stdout().is_terminal();
    let mut events = Events::new(interval, live)?;
    let mut last: Option<Look> = None;
    let mut shown = String::new();
    let mut lost: Option<Instant> = None;
    loop {
        match events.next().await? {
            What::Tick => {}
            What::Redraw => {
                events.show(&shown)?;
                continue;
            }
            What::Leave(code) => return Ok(code),
        }
        let looked = look(client).await;
        match (live, looked) {
            (true, Ok((now, pools))) => {
                shown = tables(&now, &args.chosen(now.since(last.as_ref())), &pools);
                events.show(&shown)?;
                (last, lost) = (Some(now), None);
            }
            // A daemon that restarts is back soon. What was seen last stays, with its age.
            (true, Err(error)) => {
                let since = lost.get_or_insert_with(Instant::now).elapsed().as_secs();
                events.show(&format!("tried again for {since} s, this is from before: {error}\n{shown}"))?;
            }
            (false, Ok((now, pools))) => {
                print(json, &now, &args.chosen(now.since(last.as_ref())), &pools)?;
                last = Some(now);
            }
            (false, Err(error)) => return Err(error),
        }
    }
}

impl TopArgs {
    fn chosen(&self, mut rows: Vec<Row>) -> Vec<Row> {
        rows.retain(|row| self.ids.is_empty() || self.ids.iter().any(|id| row.execution.starts_with(id)));
        rows
    }
}

/// What happens while it shows something.
enum What {
    /// It is time to look.
    Tick,
    /// The screen has changed its size, or is ours again.
    Redraw,
    /// It ends, with this exit code.
    Leave(u8),
}

/// The clock, the keyboard and signals.
struct Events {
    screen: Option<Screen>,
    ticks: tokio::time::Interval,
    interrupt: Signal,
    terminate: Signal,
    stop: Signal,
    resize: Signal,
}

impl Events {
    fn new(interval: Duration, live: bool) -> io::Result<Self> {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            stop: signal(SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw()))?,
            resize: signal(SignalKind::window_change())?,
            screen: if live { Some(Screen::open()?) } else { None },
            ticks,
        })
    }

    fn show(&self, text: &str) -> io::Result<()> {
        self.screen.as_ref().map_or(Ok(()), |screen| screen.show(text))
    }

    async fn next(&mut self) -> io::Result<What> {
        let live = self.screen.is_some();
        let quit = async {
            match &mut self.screen {
                Some(screen) => screen.quit().await,
                None => std::future::pending().await,
            }
        };
        let what = tokio::select! {
            _ = self.ticks.tick() => What::Tick,
            () = quit => What::Leave(0),
            // Not a failure for whoever looks at a screen; a script is told that it was interrupted.
            _ = self.interrupt.recv() => What::Leave(if live { 0 } else { exit::SIGINT }),
            _ = self.terminate.recv() => What::Leave(exit::SIGTERM),
            _ = self.resize.recv() => What::Redraw,
            _ = self.stop.recv() => {
                self.suspend()?;
                What::Redraw
            }
        };
        Ok(what)
    }

    /// Ctrl-Z: the terminal is the shell's until it says `fg`.
    fn suspend(&self) -> io::Result<()> {
        if let Some(screen) = &self.screen {
            screen.leave()?;
        }
        // SIGTSTP is handled, so the stop itself has to be the one that cannot be.
        kill_process(getpid(), rustix::process::Signal::STOP)?;
        match &self.screen {
            Some(screen) => screen.enter(),
            None => Ok(()),
        }
    }
}

async fn look(client: &Client) -> Result<(Look, Vec<Pool>), CtlError> {
    let containers = client.containers().await?;
    let look = Look { at: Instant::now(), at_ms: view::now_ms(), containers };
    Ok((look, client.pools().await?))
}

fn print(json: bool, now: &Look, rows: &[Row], pools: &[Pool]) -> Result<(), CtlError> {
    let text = if json {
        let value = serde_json::json!({ "at_ms": now.at_ms, "executions": rows, "pools": pools });
        format!("{value}\n")
    } else {
        tables(now, rows, pools) + "\n"
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn tables(now: &Look, rows: &[Row], pools: &[Pool]) -> String {
    let containers = now.containers.len();
    let memory: u64 = now.containers.iter().map(|container| container.memory_bytes).sum();
    let cpu: f64 = rows.iter().map(|row| row.cpu_percent).sum();
    let queued: usize = pools.iter().map(|pool| pool.queued).sum();
    let summary = format!(
        "{} executions, {queued} waiting, {containers} containers: CPU {cpu:.0} %, memory {}\n",
        rows.len(),
        bytes(memory)
    );
    let pools = pools.iter().map(|pool| {
        let claims = pool.hits + pool.misses;
        [
            pool.provider.clone(),
            match (pool.stage, &pool.model) {
                (Stage::Created, _) => "created".to_owned(),
                (Stage::Prestarted, None) => "prestarted".to_owned(),
                (Stage::Prestarted, Some(model)) => format!("prestarted ({model})"),
            },
            format!("{}/{}", pool.warm, pool.target),
            pool.creating.to_string(),
            pool.claimed.to_string(),
            pool.queued.to_string(),
            if claims > 0 { format!("{:.0} %", pool.hits as f64 * 100.0 / claims as f64) } else { String::new() },
            bytes(pool.memory.bytes),
            pool.last_error.clone().or_else(|| pool.paused.clone()).unwrap_or_default(),
        ]
    });
    let pools = table(["POOL", "STAGE", "WARM", "CREATING", "CLAIMED", "WAITING", "HITS", "MEMORY", "TROUBLE"], pools);
    let rows = rows.iter().map(|row| {
        [
            short(&row.execution).to_owned(),
            row.provider.clone(),
            row.user.clone(),
            age(row.since_ms, now.at_ms),
            format!("{:.1} %", row.cpu_percent),
            format!("{:.0} %", row.cpu_limit_percent),
            bytes(row.memory_bytes),
            format!("{:.0} %", row.memory_percent),
            format!("{:.0} %", row.throttled_percent),
            row.oom_kills.to_string(),
        ]
    });
    let columns = ["EXECUTION", "PROVIDER", "USER", "AGE", "CPU", "LIMIT", "MEMORY", "OF LIMIT", "THROTTLED", "OOM"];
    format!("{summary}\n{pools}\n{}", table(columns, rows))
}
