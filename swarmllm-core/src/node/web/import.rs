//! Import of a model from the web: the header first, then its tensors, shard after shard.

use reqwest::Response;

use crate::base::ModelId;
use crate::model::ModelError;
use crate::model::catalog::{Catalog, HeadIntake, Intake, Origin, Spool, SpoolChoice};
use crate::model::gguf::Gguf;
use crate::model::shard::GROUP;
use crate::node::api::request::ImportOptions;
use crate::node::blocking::blocking;
use crate::node::models::examine::Examination;
use crate::node::models::transfer::fault;
use crate::node::web::client::Client;
use crate::node::web::error::WebError;
use crate::node::web::known::{self, Known};
use crate::node::web::reader::Reader;
use crate::node::web::remote::{Opened, Remote};

/// Imports the file that `client` asks for. Cancel-safe: what came is kept, for the next import from there.
pub(super) async fn import(
    catalog: &Catalog,
    client: Client,
    options: &ImportOptions,
    examination: &Examination,
) -> Result<ModelId, WebError> {
    match Remote::open(client.clone()).await? {
        Opened::Ranges(remote) => by_ranges(catalog, remote, options, examination).await,
        Opened::Whole(response, len) => whole(catalog, client, (response, len), options, examination).await,
    }
}

async fn by_ranges(
    catalog: &Catalog,
    remote: Remote,
    options: &ImportOptions,
    examination: &Examination,
) -> Result<ModelId, WebError> {
    let mut reader = remote.reader();
    let (intake, first) = header(catalog, remote.origin(), &mut reader).await?;
    let tail = intake.tail(&first);
    let header = examine(examination, remote.whole_header(first).await?).await?;
    let (intake, header) = match known::import(catalog, &remote, (intake, header, &tail), options).await? {
        Known::Done(model) => return Ok(model),
        Known::Other(intake, header) => (*intake, *header),
    };
    let mut intake = cut(intake, header, remote.client().stem(), options).await?;
    let shards: Vec<usize> = (0..intake.plan().manifest.shards.len()).collect();
    reader.plan(intake.plan(), &shards, tail);
    options.tell(intake.progress());
    while let Some((pieces, len)) = intake.next() {
        let group = reader.group(&pieces, len).await?;
        intake = blocking(move || intake.write(&group).map(|()| intake).map_err(fault)).await?;
        options.tell(intake.progress());
    }
    Ok(blocking(move || intake.finish().map_err(fault)).await?)
}

/// Fetches a model's header and nothing else of it.
pub(super) async fn header_alone(client: Client) -> Result<Gguf, WebError> {
    let (mut response, len) = match Remote::open(client.clone()).await? {
        Opened::Ranges(remote) => {
            let (first, _) = remote.first_header().await?;
            return remote.whole_header(first).await;
        }
        Opened::Whole(response, len) => (response, len),
    };
    let (mut left, mut bytes, mut wanted) = (client.patience.group, Vec::new(), GROUP.min(len));
    loop {
        while (bytes.len() as u64) < wanted {
            let missing = wanted - bytes.len() as u64;
            let chunk = client.chunk(&mut response, &mut left).await?;
            bytes.extend_from_slice(&chunk.ok_or_else(|| WebError::Short { host: client.host(), missing })?);
        }
        let path = client.shown().into();
        let read = move || match Gguf::read_prefix(&bytes, len) {
            Ok(header) => Ok((header, bytes)),
            Err(source) => Err(fault(ModelError::Gguf { path, source })),
        };
        match blocking(read).await? {
            (Some(header), _) => return Ok(header),
            (None, read) => bytes = read,
        }
        (left, wanted) = (client.patience.group, wanted.saturating_mul(2).min(len));
    }
}

/// Asks whether the model can run here, before anything but its header is fetched.
async fn examine(examination: &Examination, header: Gguf) -> Result<Gguf, WebError> {
    let examination = examination.clone();
    let done = blocking(move || Ok((examination.check(&header), header))).await?;
    done.0?;
    Ok(done.1)
}

/// Cuts the model.
async fn cut(
    intake: HeadIntake,
    header: Gguf,
    stem: Option<String>,
    options: &ImportOptions,
) -> Result<Intake, WebError> {
    let options = options.clone();
    let cut = move || intake.cut(&header, options.name.as_deref(), stem.as_deref(), |kind| options.keeps(kind));
    Ok(blocking(move || cut().map_err(fault)).await?)
}

/// Fetches the beginning of the file, or of the first part, until the header is whole.
async fn header(catalog: &Catalog, origin: Origin, reader: &mut Reader) -> Result<(HeadIntake, Gguf), WebError> {
    let catalog = catalog.clone();
    let begin = move || {
        let mut intake = catalog.intake(origin)?;
        let header = intake.header()?;
        Ok((intake, header))
    };
    let (mut intake, mut header) = blocking(move || begin().map_err(fault)).await?;
    loop {
        if let Some(header) = header {
            return Ok((intake, header));
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

/// Takes the whole file from a server that does not give parts of it.
async fn whole(
    catalog: &Catalog,
    client: Client,
    (mut response, len): (Response, u64),
    options: &ImportOptions,
    examination: &Examination,
) -> Result<ModelId, WebError> {
    let kept = options.clone();
    let (alias, stem) = (options.name.clone(), client.stem());
    let choice = SpoolChoice { alias, stem, keep: Box::new(move |kind| kept.keeps(kind)) };
    let mut spool = catalog.spool(client.shown(), len, choice);
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
            if let Some(header) = spool.take_header() {
                examine(examination, header).await?;
            }
            options.tell(spool.progress());
        }
    }
    drop(response);
    Ok(blocking(move || spool.finish().map_err(fault)).await?)
}

async fn write(mut spool: Spool, bytes: Vec<u8>) -> Result<Spool, WebError> {
    let write = move || -> Result<Spool, ModelError> {
        spool.write(&bytes)?;
        Ok(spool)
    };
    Ok(blocking(move || write().map_err(fault)).await?)
}
