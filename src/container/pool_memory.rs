//! Memory of the warm containers of each pool, cached because it is asked for often.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Container, ContainerError, Template};
use crate::provider::prestart::ModelMode;
use thaw_client::types::{Pool, PoolMemory, Stage};
use thaw_os::cgroup::{Memory, Reclaim};

/// Age up to which figures are used again: with 500 containers, reading them takes 20 ms.
const AGE: Duration = Duration::from_secs(1);

impl Container {
    /// Reclaims memory of the frozen container as its template says. Reclaiming less than hoped for is no failure.
    ///
    /// # Errors
    /// The container may still be able to swap: no secret must ever be given to it then.
    pub(super) async fn reclaim(&self) -> Result<(), ContainerError> {
        let what = self.template.reclaim;
        if what == Reclaim::Nothing {
            return Ok(());
        }
        let (hierarchy, entry) = (Arc::clone(self.hierarchy()), Arc::clone(self.teardown.entry()));
        let reclaimed = tokio::task::spawn_blocking(move || hierarchy.reclaim(&entry.cgroup, what)).await;
        match reclaimed {
            Ok(Ok(bytes)) => tracing::debug!(container = self.id(), bytes, "memory reclaimed"),
            Ok(Err(error)) if what == Reclaim::Swap => return Err(error.into()),
            Ok(Err(error)) => tracing::warn!(container = self.id(), %error, "memory not reclaimed"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// The pool that a container was created for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolKey {
    provider: String,
    stage: Stage,
    /// The model, where the CLI has a fixed one.
    model: Option<String>,
}

impl PoolKey {
    pub(super) fn of(template: &Template) -> Self {
        let plan = template.prestarted.as_ref().map(|prestarted| &prestarted.plan);
        Self {
            provider: template.provider.clone(),
            stage: if plan.is_some() { Stage::Prestarted } else { Stage::Created },
            model: plan.filter(|plan| plan.model_mode == ModelMode::Fixed).map(|plan| plan.model.clone()),
        }
    }

    /// Stage of the pool's containers.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The provider.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// Whether this is the provider's pool of this stage and model.
    pub fn is_for(&self, stage: Stage, model: Option<&str>) -> bool {
        self.stage == stage && self.model.as_deref() == model
    }

    /// Whether this is the key of `pool`.
    pub fn is_of(&self, pool: &Pool) -> bool {
        self.provider == pool.provider && self.stage == pool.stage && self.model == pool.model
    }
}

type Figures = Vec<(PoolKey, PoolMemory)>;

/// Cache of the last figures.
#[derive(Debug, Default)]
pub struct MemoryCache(Mutex<Option<(Instant, Figures)>>);

impl MemoryCache {
    /// Figures that were read within the last second, or else what `read` returns now: one entry for each container.
    pub fn get(&self, read: impl FnOnce() -> Vec<(PoolKey, Memory)>) -> Figures {
        // The lock is held while reading: whoever else asks gets the same figures instead of reading too.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, figures)) if at.elapsed() < AGE => figures.clone(),
            _ => {
                let figures = sum(read());
                *last = Some((Instant::now(), figures.clone()));
                figures
            }
        }
    }
}

fn sum(each: Vec<(PoolKey, Memory)>) -> Figures {
    let mut sums: Vec<(PoolKey, Memory, u64)> = Vec::new();
    for (key, memory) in each {
        match sums.iter_mut().find(|(known, ..)| *known == key) {
            Some((_, sum, count)) => {
                sum.add(&memory);
                *count += 1;
            }
            None => sums.push((key, memory, 1)),
        }
    }
    let figures = sums.into_iter().map(|(key, sum, count)| {
        let memory = PoolMemory {
            bytes: sum.bytes,
            bytes_per_container: sum.bytes / count,
            anonymous_bytes: sum.anonymous_bytes,
            file_bytes: sum.file_bytes,
            kernel_bytes: sum.kernel_bytes,
            swapped_bytes: sum.swapped_bytes,
        };
        (key, memory)
    });
    figures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(provider: &str, stage: Stage) -> PoolKey {
        PoolKey { provider: provider.to_owned(), stage, model: None }
    }

    fn of(bytes: u64) -> Memory {
        Memory { bytes, kernel_bytes: 1, ..Memory::default() }
    }

    #[test]
    fn figures_are_summed_by_pool_and_kept_for_a_second() {
        let cache = MemoryCache::default();
        let (created, prestarted) = (key("a", Stage::Created), key("a", Stage::Prestarted));
        let read = || vec![(created.clone(), of(10)), (prestarted.clone(), of(500)), (created.clone(), of(21))];
        let figures = cache.get(read);
        assert_eq!(figures.len(), 2);
        let (_, memory) = figures.iter().find(|(key, _)| *key == created).unwrap();
        assert_eq!((memory.bytes, memory.bytes_per_container, memory.kernel_bytes), (31, 15, 2));
        let again = cache.get(|| panic!("read again"));
        assert_eq!(again, figures);
    }
}
