//! What a provider's containers are made from, and the pools that hold them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::checked::CheckedProvider;
use super::images::{NAMELESS, image};
use super::settings::{limits, pool_settings, reclaim};
use crate::container::{self, Orphan, Prestarted, Template};
use crate::egress::Policy;
use crate::execution::{self, ImageInUse, Served};
use crate::pool::{Pool, Prepare, PrepareError, Prepared, Scheduler};
use crate::provider::{Provider, prestart};
use thaw_client::config::Config;
use thaw_client::types::Stage;
use thaw_image::Store;
use thaw_os::cgroup::Reclaim;

pub(super) fn serve_provider(
    config: &Config,
    name: &str,
    checked: CheckedProvider,
    scheduler: &Arc<Scheduler>,
    images: &Arc<Store>,
    mut warm: Vec<Orphan>,
) -> Served {
    let CheckedProvider { provider, policy, plans, base_url } = checked;
    let (image_env, image_digest) = (Arc::default(), Arc::default());
    let source = Arc::new(Source {
        provider: Arc::clone(&provider),
        images: Arc::clone(images),
        image_env: Arc::clone(&image_env),
        image_digest: Arc::clone(&image_digest),
        layout: config.paths.layouts().join(&provider.image),
        policy: Arc::clone(&policy),
        proxy_port: config.egress.port,
        reclaim: reclaim(config.pool.reclaim),
    });
    let mut start = |stage, bounds, prestart: Option<Arc<prestart::Plan>>| {
        let source = Arc::clone(&source);
        let fixed = prestart.as_ref().filter(|plan| plan.model_mode == prestart::ModelMode::Fixed);
        let model = fixed.map(|plan| plan.model.clone());
        let prepare: Prepare = Arc::new(move || source.template(prestart.as_ref()));
        let own = warm.extract_if(.., |orphan| orphan.pool().is_for(stage, model.as_deref())).collect();
        Pool::start(name, pool_settings(config, stage, model, bounds), Arc::clone(scheduler), prepare, own)
    };
    let pool = start(Stage::Created, config.pool_bounds(name, provider.pool_target), None);
    let prestarted = plans.into_iter().map(|(plan, target)| {
        let plan = Arc::new(plan);
        // As many as the operator says: what they hold is a decision about memory.
        (start(Stage::Prestarted, (target, target, target, false), Some(Arc::clone(&plan))), plan)
    });
    let prestarted = prestarted.collect();
    let layout = config.paths.layouts().join(&provider.image);
    let image = ImageInUse { env: image_env, digest: image_digest, layout };
    Served { provider, pool, prestarted, image, base_url, policy }
}

/// What a provider's containers are made from.
struct Source {
    provider: Arc<Provider>,
    images: Arc<Store>,
    image_env: Arc<Mutex<Vec<(String, String)>>>,
    image_digest: Arc<Mutex<Option<String>>>,
    layout: PathBuf,
    policy: Arc<Policy>,
    proxy_port: u16,
    reclaim: Reclaim,
}

impl Source {
    /// Unpacks the image if need be, which may take seconds.
    fn template(&self, plan: Option<&Arc<prestart::Plan>>) -> Result<Prepared, PrepareError> {
        let provider = &self.provider;
        let image = image(&self.images, &provider.image, &self.layout)?;
        let mut image_env = image.config.env.clone();
        let name = execution::runtime_name(&provider.image, &image.rootfs, execution::RUNTIME_USER)
            .map_err(|error| PrepareError::Users(error.into()))?;
        if name.is_none() {
            tracing::warn!(
                provider = %provider.name, image = %provider.image, uid = execution::RUNTIME_USER, "{NAMELESS}"
            );
        }
        let name = name.unwrap_or_else(|| execution::RUNTIME_USER.to_string());
        image_env.push(("USER".to_owned(), name));
        let prestarted = plan.map(|plan| {
            let command = execution::prestart_command(plan, provider, &image_env, self.proxy_port)?;
            Ok::<_, PrepareError>(Arc::new(Prestarted { plan: Arc::clone(plan), command }))
        });
        let credentials = &provider.credentials;
        let template = Arc::new(Template {
            provider: provider.name.clone(),
            root: container::image_root(&image)
                .map_err(|error| PrepareError::Image { image: provider.image.clone(), source: error.into() })?,
            layer: None,
            hold: Some(image.hold()),
            home: Some(provider.home.clone()),
            user: execution::RUNTIME_USER,
            group: execution::RUNTIME_USER,
            credentials: (!credentials.dir.is_empty()).then(|| (credentials.dir.clone(), credentials.tmpfs_bytes)),
            workspace: execution::has_workspace(&image.rootfs),
            idle: limits(&provider.resources.idle),
            run: limits(&provider.resources.run),
            pids: provider.pids_max,
            egress: Arc::clone(&self.policy),
            prestarted: prestarted.transpose()?,
            reclaim: self.reclaim,
        });
        let (known, in_use) = (Arc::clone(&self.image_env), Arc::clone(&self.image_digest));
        let digest = image.digest.clone();
        let take_over = move || {
            known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&image_env);
            *in_use.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest.clone());
        };
        Ok(Prepared { template, take_over: Arc::new(take_over) })
    }
}
