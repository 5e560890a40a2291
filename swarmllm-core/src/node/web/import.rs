//! Import of a model from the web: the header first, then its tensors, shard after shard.

use reqwest::Response;

use crate::base::ModelId;
use crate::model::ModelError;
use crate::model::catalog::{Catalog, Intake, Origin, Spool};
use crate::model::shard::GROUP;
use crate::node::request::ImportOptions;
use crate::node::transfer::{blocking, fault};
use crate::node::web::client::{Client, Found, Version};
use crate::node::web::error::WebError;
use crate::node::web::reader::Reader;

/// Imports the file that `client` asks for. Cancel-safe: what came is kept, for the next import from there.
pub(super) async fn import(catalog: &Catalog, client: Client, options: &ImportOptions) -> Result<ModelId, WebError> {
    match client.probe().await? {
        Found::Parts(version) => in_parts(catalog, client, version, options).await,
        Found::Whole(response, len) => whole(catalog, client, response, len, options).await,
    }
}

async fn in_parts(
    catalog: &Catalog,
    client: Client,
    version: Version,
    options: &ImportOptions,
) -> Result<ModelId, WebError> {
    let (origin, stem) = (origin(&client, &version), client.stem());
    let mut reader = Reader::new(client, version);
    let mut intake = header(catalog, origin, &mut reader, stem, options).await?;
    options.tell(intake.progress());
    while let Some((pieces, len)) = intake.next() {
        let group = reader.group(&pieces, len).await?;
        intake = blocking(move || intake.write(&group).map(|()| intake).map_err(fault)).await?;
        options.tell(intake.progress());
    }
    Ok(blocking(move || intake.finish().map_err(fault)).await?)
}

/// Fetches the file's beginning until the header is whole, and cuts the model.
async fn header(
    catalog: &Catalog,
    origin: Origin,
    reader: &mut Reader,
    stem: Option<String>,
    options: &ImportOptions,
) -> Result<Intake, WebError> {
    let catalog = catalog.clone();
    let begin = move || {
        let mut intake = catalog.intake(origin)?;
        let header = intake.header()?;
        Ok((intake, header))
    };
    let (mut intake, mut header) = blocking(move || begin().map_err(fault)).await?;
    loop {
        if let Some(header) = header {
            let (tail, options) = (intake.tail(&header), options.clone());
            let cut = move || intake.cut(&header, options.name.as_deref(), stem.as_deref(), |kind| options.keeps(kind));
            let intake = blocking(move || cut().map_err(fault)).await?;
            let shards: Vec<usize> = (0..intake.plan().manifest.shards.len()).collect();
            reader.plan(intake.plan(), &shards, tail);
            return Ok(intake);
        }
        let piece = intake.next();
        let group = reader.group(&[piece], piece.len).await?;
        let go_on = move || {
            intake.write(&group)?;
            let header = intake.header()?;
            Ok((intake, header))
        };
        (intake, header) = blocking(move || go_on().map_err(fault)).await?;
    }
}

/// Takes the whole file from a server that does not give parts of it. It lies on the disk until it is cut.
async fn whole(
    catalog: &Catalog,
    client: Client,
    mut response: Response,
    len: u64,
    options: &ImportOptions,
) -> Result<ModelId, WebError> {
    let (catalog, shown) = (catalog.clone(), client.shown());
    let mut spool = blocking(move || catalog.spool(shown, len).map_err(fault)).await?;
    let mut left = client.patience.group;
    let mut bytes = Vec::new();
    while spool.wants() > bytes.len() as u64 {
        let missing = spool.wants() - bytes.len() as u64;
        let chunk = client.chunk(&mut response, &mut left).await?;
        let chunk = chunk.ok_or_else(|| WebError::Short { host: client.host(), missing })?;
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 >= GROUP.min(spool.wants()) {
            left = client.patience.group;
            spool = write(spool, std::mem::take(&mut bytes)).await?;
            options.tell(spool.progress());
        }
    }
    drop(response);
    let (options, stem) = (options.clone(), client.stem());
    let cut = move || spool.finish(options.name.as_deref(), stem.as_deref(), &|kind| options.keeps(kind));
    Ok(blocking(move || cut().map_err(fault)).await?)
}

async fn write(mut spool: Spool, bytes: Vec<u8>) -> Result<Spool, WebError> {
    let write = move || -> Result<Spool, ModelError> {
        spool.write(&bytes)?;
        Ok(spool)
    };
    Ok(blocking(move || write().map_err(fault)).await?)
}

fn origin(client: &Client, version: &Version) -> Origin {
    let key = *blake3::hash(client.address().as_bytes()).as_bytes();
    Origin { shown: client.shown(), key, version: version.digest(&key), len: version.len }
}
