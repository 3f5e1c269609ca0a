//! thawd as a contender.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bed::{CREDENTIALS, Daemon};
use crate::contender::{Contender, TEXT};
use crate::http::{self, Client, Request};

/// The body of a request for `command` with the two credential files.
pub fn request(provider: &str, command: &[&str]) -> Value {
    let files: serde_json::Map<_, _> =
        CREDENTIALS.iter().map(|(name, content)| ((*name).to_owned(), json!(content))).collect();
    json!({"provider": provider, "user": "bench", "command": command, "credentials": {"files": files}})
}

/// Fails unless both credential files reach the command: otherwise the times would be those of something else.
pub fn check_credentials(daemon: &Daemon, provider: &str) -> Result<()> {
    let script = CREDENTIALS.map(|(name, _)| format!("cat ~/.bench/{name}")).join(" && ");
    let body = request(provider, &["/bin/sh", "-c", &script]);
    let finished = http::run(&mut daemon.client(), &Request::new(&body), false)?;
    let expected = CREDENTIALS.map(|(_, content)| content).concat();
    ensure!(finished.stdout == expected, "the credential files did not arrive: {:?}", finished.stdout);
    Ok(())
}

/// One request after the other for `/bin/echo` with two credential files.
pub struct Echo {
    name: String,
    daemon: Rc<Daemon>,
    client: Client,
    request: Request,
    /// Warm containers that its pool must have before each run; 0 makes every claim a cold one.
    target: usize,
    keep: bool,
    provider: String,
    /// What the daemon itself measured.
    pub claim_us: Rc<std::cell::RefCell<Vec<f64>>>,
}

impl Echo {
    /// Over one kept connection, or a new one each time.
    pub fn new(name: &str, daemon: &Rc<Daemon>, provider: &str, target: usize, keep: bool) -> Self {
        Self {
            name: name.to_owned(),
            daemon: Rc::clone(daemon),
            client: daemon.client(),
            request: Request::new(&request(provider, &["/bin/echo", TEXT])),
            target,
            keep,
            provider: provider.to_owned(),
            claim_us: Rc::default(),
        }
    }
}

impl Contender for Echo {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn once(&mut self) -> Result<Duration> {
        let finished = http::run(&mut self.client, &self.request, self.keep)?;
        let expected = if self.target > 0 { "warm" } else { "cold" };
        ensure!(finished.path == expected, "the claim was {}, not {expected}", finished.path);
        ensure!(finished.stdout.trim() == TEXT, "the command said {:?}", finished.stdout);
        self.claim_us.borrow_mut().push(finished.claim_us as f64);
        Ok(finished.first_byte)
    }

    fn settle(&mut self) -> Result<()> {
        self.daemon.wait_full(&self.provider, self.target)?;
        if self.keep { self.client.connect() } else { Ok(()) }
    }
}
