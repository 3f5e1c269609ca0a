//! How images come into the store: from layouts and archives, by layers that are proved before they are shared.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::{Result, StoreError, at};
use super::record::{self, Image, ImageConfig, ImageLayer, ImageRecord, LayerRecord, file_of};
use super::{Store, import, layers, now_ms, sync};
use crate::digest::{hex, is_sha256};
use crate::layout::{LayerBlob, Layout, LayoutImage};
use crate::progress::Progress;
use crate::unpack::Used;

/// Blobs of one layer that are remembered as looked into; others are looked into each time.
const MAX_BLOBS: usize = 16;

/// How an image that comes in is called.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportNames<'a> {
    /// Its name in the store; the name that it brings if absent.
    pub name: Option<&'a str>,
    /// Of several images in one file, the one that is called so there.
    pub reference: Option<&'a str>,
}

impl Store {
    /// Brings in the image of an OCI image layout (a folder), or of an OCI archive or the output of `docker save`
    /// (a tar file, which may be compressed with gzip or zstd), under `name` or the name that is in there.
    pub fn import(&self, path: &Path, name: Option<&str>, progress: &dyn Progress) -> Result<Image> {
        self.import_named(path, ImportNames { name, reference: None }, progress)
    }

    /// Like [`Store::import`]. The image's notes are those of the store, and what is told about its names.
    pub fn import_named(&self, path: &Path, names: ImportNames<'_>, progress: &dyn Progress) -> Result<Image> {
        names.name.map(file_of).transpose()?;
        if path.is_dir() {
            let layout = Layout::choose(path, names.reference, &self.limits)?;
            return self.import_layout(&self.locked()?, path, &layout, &[], names, progress);
        }
        let lock = self.locked()?;
        let (scratch, folder) = (self.work_path(), self.work_path());
        let total = fs::metadata(path).map_err(at(path))?.len();
        progress.started("reading", Some(total));
        let arranged = import::arrange(path, names.reference, &scratch, &folder, &self.limits, progress);
        progress.finished(if arranged.is_ok() { "read" } else { "failed" });
        let result = arranged.and_then(|own| {
            // What has names of its own is one image by now.
            let reference = if own.is_empty() { names.reference } else { None };
            let layout = Layout::choose(&folder, reference, &self.limits)?;
            self.import_layout(&lock, path, &layout, &own, names, progress)
        });
        for folder in [&scratch, &folder] {
            // What cannot be removed now is swept at the next start.
            let _ = fs::remove_dir_all(folder);
        }
        result
    }

    /// Brings in the image of a layout that somebody else made; `own` are names that stand beside it.
    fn import_layout(
        &self,
        lock: &File,
        path: &Path,
        layout: &Layout,
        own: &[String],
        names: ImportNames<'_>,
        progress: &dyn Progress,
    ) -> Result<Image> {
        // What it was asked for by is its name, unless that is a digest or may be a tag alone.
        let asked = names.reference.filter(|asked| asked.contains(['/', ':']) && !is_sha256(asked));
        let (name, is_bare) = match names.name.or(asked).or(own.first().map(String::as_str)) {
            Some(name) => (name, false),
            None => layout.foreign_name()?,
        };
        let before = self.find(name)?.filter(|image| image.digest != layout.manifest_digest);
        if is_bare && before.is_some() {
            let reason = format!(
                "calls its image {name:?}, and the store has another image of that name: give --name {name} to \
                 replace that one, or another name"
            );
            return Err(StoreError::Import { path: path.to_owned(), reason });
        }
        let mut image = self.unpacked(lock, layout, name, progress)?;
        if let Some(before) = before {
            image.notes.push(format!("{name} meant {} before; `thawctl image prune` removes that", before.digest));
        }
        let own = own.iter().map(String::as_str).chain(layout.other_names(name));
        let others: BTreeSet<&str> = own.filter(|other| *other != name && names.name.is_none()).collect();
        if !others.is_empty() {
            let others = others.into_iter().collect::<Vec<_>>().join(", ");
            image.notes.push(format!("has other names there, which were not taken over: {others}"));
        }
        Ok(image)
    }

    /// The image of a layout, under `name`. Its blobs are looked at also when the store has it. The lock is held.
    pub(super) fn unpacked(&self, _lock: &File, layout: &Layout, name: &str, progress: &dyn Progress) -> Result<Image> {
        let file = file_of(name)?;
        let is_new = self.load(name, &layout.manifest_digest)?.is_none();
        progress.started(if is_new { "unpacking" } else { "checking" }, None);
        let result = if is_new { self.unpack(layout, progress) } else { self.prove(layout, progress) };
        progress.finished(match (&result, is_new) {
            (Err(_), _) => "failed",
            (Ok(()), true) => "unpacked",
            (Ok(()), false) => "is there already",
        });
        result?;
        self.write_whole(&self.root.join("names").join(file), layout.manifest_digest.as_bytes())?;
        self.look(name)
    }

    /// Proves that a layout really has the image that the store has of the same manifest.
    fn prove(&self, layout: &Layout, progress: &dyn Progress) -> Result<()> {
        for layer in &layout.image(&self.limits)?.layers {
            self.prove_layer(layout, layer, &self.layer_folder(&layer.diff_id), progress)?;
        }
        Ok(())
    }

    /// Proves that a layout has the blob of a layer whose files are in `folder` already: whoever only names a layer gets
    /// nothing of it. Returns what is known of the layer.
    fn prove_layer(
        &self,
        layout: &Layout,
        layer: &LayerBlob,
        folder: &Path,
        progress: &dyn Progress,
    ) -> Result<LayerRecord> {
        let path = folder.join(layers::RECORD);
        let reason =
            || StoreError::Damaged { layer: layer.diff_id.clone(), reason: "its record is missing".to_owned() };
        let mut record: LayerRecord = record::read(&path)?.ok_or_else(reason)?;
        let blob = layout.open_blob(&layer.digest, layer.size)?;
        let is_known = record.blobs.contains(&layer.digest);
        layers::prove(layer, blob, is_known, &self.limits, progress)?;
        if !is_known && record.blobs.len() < MAX_BLOBS {
            record.blobs.push(layer.digest.clone());
            self.write_record(&path, &record)?;
        }
        Ok(record)
    }

    /// Unpacks into `tmp` and moves the whole into place. The lock is held.
    fn unpack(&self, layout: &Layout, progress: &dyn Progress) -> Result<()> {
        let image = layout.image(&self.limits)?;
        let work = self.work_path();
        let result = self
            .unpack_into(&work, layout, &image, progress)
            .and_then(|fresh| self.publish(&work, &fresh, &layout.manifest_digest));
        // What cannot be removed now is swept at the next start.
        let _ = fs::remove_dir_all(&work);
        result
    }

    /// Unpacks the layers that are not there yet, and puts the image together; returns the diff ids of the former.
    fn unpack_into(
        &self,
        work: &Path,
        layout: &Layout,
        image: &LayoutImage,
        progress: &dyn Progress,
    ) -> Result<BTreeSet<String>> {
        for folder in [work.to_owned(), work.join("layers"), work.join("image")] {
            DirBuilder::new().mode(0o700).create(&folder).map_err(at(&folder))?;
        }
        let (mut used, mut fresh) = (Used::default(), BTreeSet::new());
        let mut folders: Vec<(&LayerBlob, PathBuf)> = Vec::new();
        let mut known = Vec::new();
        let mut notes: Vec<String> = image.note.iter().cloned().collect();
        for layer in &image.layers {
            let stored = self.layer_folder(&layer.diff_id);
            let new = work.join("layers").join(hex(&layer.diff_id));
            let is_fresh = fresh.contains(&layer.diff_id);
            let is_stored = !is_fresh && record::read::<LayerRecord>(&stored.join(layers::RECORD))?.is_some();
            let folder = if is_stored { stored } else { new };
            let record = if is_fresh || is_stored {
                self.prove_layer(layout, layer, &folder, progress)?
            } else {
                let blob = layout.open_blob(&layer.digest, layer.size)?;
                fresh.insert(layer.diff_id.clone());
                layers::unpack_layer(layer, blob, &folder, &used, &self.limits, progress)?
            };
            for note in record.notes.sentences() {
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
            let unpack = |source| StoreError::Unpack { layer: layer.digest.clone(), source };
            used.add(&record.used, &self.limits).map_err(unpack)?;
            known.push(ImageLayer {
                diff_id: layer.diff_id.clone(),
                digest: layer.digest.clone(),
                compressed_bytes: layer.size,
                unpacked_bytes: record.used.bytes,
            });
            folders.push((layer, folder));
        }
        let config = ImageConfig::from(&image.config);
        layers::compose(&work.join("image/rootfs"), &folders, &config, &self.limits)?;
        let record = ImageRecord { config, layers: known, unpacked_at_ms: now_ms(), notes };
        record::write(&work.join("image/image.json"), &record)?;
        Ok(fresh)
    }

    /// Moves fresh layers and then the image to where they count. A kill between leaves layers that no image has,
    /// which are swept.
    fn publish(&self, work: &Path, fresh: &BTreeSet<String>, digest: &str) -> Result<()> {
        // All files at once: one by one would take minutes for a large tree.
        File::open(work).and_then(|folder| Ok(rustix::fs::syncfs(folder)?)).map_err(at(work))?;
        let layers = fresh.iter().map(|id| (work.join("layers").join(hex(id)), self.layer_folder(id)));
        for (from, to) in layers.chain([(work.join("image"), self.folder(digest))]) {
            if to.exists() {
                // Without a record, or it would have been found.
                self.discard(&to)?;
            }
            fs::rename(&from, &to).map_err(at(&to))?;
        }
        sync(&self.root.join("layers"))?;
        sync(&self.root.join("images"))
    }
}
