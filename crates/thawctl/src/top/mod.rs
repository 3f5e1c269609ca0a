//! `thawctl top`: what executions use, and how the pools are, again and again.

mod screen;
mod usage;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use self::screen::Screen;
use self::usage::{Look, Row};
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
    /// Look once and leave
    #[arg(long)]
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

pub(super) async fn top(client: &Client, args: &TopArgs, format: Format) -> Result<u8, CtlError> {
    let json = args.json || format == Format::Json;
    let interval = Duration::from_secs_f64(args.interval);
    if args.once {
        let first = look(client).await?;
        tokio::time::sleep(interval.min(ONCE)).await;
        let (now, pools) = look(client).await?;
        print(json, &now, &now.since(Some(&first.0)), &pools)?;
        return Ok(0);
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let live = !json && !args.batch && io::stdout().is_terminal();
    let mut screen = if live { Some(Screen::open()?) } else { None };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last: Option<Look> = None;
    loop {
        let quit = async {
            match &mut screen {
                Some(screen) => screen.quit().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ticks.tick() => {}
            () = quit => return Ok(0),
            // Not a failure for whoever looks at a screen; a script is told that it was interrupted.
            _ = interrupt.recv() => return Ok(if live { 0 } else { exit::SIGINT }),
            _ = terminate.recv() => return Ok(exit::SIGTERM),
        }
        let looked = look(client).await;
        match (&mut screen, looked) {
            (Some(screen), Ok((now, pools))) => {
                screen.show(&tables(&now, &now.since(last.as_ref()), &pools))?;
                last = Some(now);
            }
            // A daemon that restarts is back soon.
            (Some(screen), Err(error)) => screen.show(&format!("thawctl: {error}\n"))?,
            (None, Ok((now, pools))) => {
                print(json, &now, &now.since(last.as_ref()), &pools)?;
                last = Some(now);
            }
            (None, Err(error)) => return Err(error),
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
            row.execution.clone(),
            row.provider.clone(),
            row.user.clone(),
            age(row.since_ms, now.at_ms),
            format!("{:.1} %", row.cpu_percent),
            format!("{:.0} %", row.cpu_limit_percent),
            bytes(row.memory_bytes),
            format!("{:.0} %", row.memory_percent),
            format!("{:.0} %", row.throttled_percent),
            row.oom_kills.to_string(),
            row.container.clone(),
        ]
    });
    let columns =
        ["EXECUTION", "PROVIDER", "USER", "AGE", "CPU", "LIMIT", "MEMORY", "OF LIMIT", "THROTTLED", "OOM", "CONTAINER"];
    format!("{summary}\n{pools}\n{}", table(columns, rows))
}
