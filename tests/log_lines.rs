//! Log lines in JSON: each is one object, no key is in it twice, and its words are those of the API.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use support::{Daemon, shell};

/// JSON in which no object has a key twice; what is in it is kept for objects and strings only.
#[derive(Debug)]
enum Strict {
    Object(BTreeMap<String, Strict>),
    Text(String),
    Other,
}

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
        let mut object = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, Strict>()? {
            if object.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("{key} is there twice")));
            }
        }
        Ok(Strict::Object(object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        while seq.next_element::<Strict>()?.is_some() {}
        Ok(Strict::Other)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Strict, E> {
        Ok(Strict::Text(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Strict, E> {
        Ok(Strict::Other)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Strict, E> {
        Ok(Strict::Other)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Strict, E> {
        Ok(Strict::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Strict, E> {
        Ok(Strict::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Strict, E> {
        Ok(Strict::Other)
    }
}

#[tokio::test]
async fn every_line_is_an_object_without_a_key_twice() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("log.format", "json").set("log.filter", "trace")).await;
    daemon.settled().await;
    daemon.run(&shell("exit 3")).await;
    daemon.run(&shell("kill -TERM $$")).await;
    let change = thaw_client::types::PoolChange { target: Some(2), ..Default::default() };
    daemon.client.change_pool::<serde_json::Value>("test", &change).await.unwrap();
    daemon.settled().await;
    let log = daemon.log();
    daemon.stop().await;
    let mut reasons = Vec::new();
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with('{')).collect();
    assert!(lines.len() > 20, "{log}");
    for line in lines {
        let object = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let Strict::Object(object) = object else { panic!("{line}") };
        assert!(["timestamp", "level", "message", "target"].iter().all(|key| object.contains_key(*key)), "{line}");
        if matches!(&object["message"], Strict::Text(text) if text == "execution ended")
            && let Some(Strict::Text(reason)) = object.get("reason")
        {
            reasons.push(reason.clone());
        }
    }
    assert_eq!(reasons, ["exited", "killed"]);
}
