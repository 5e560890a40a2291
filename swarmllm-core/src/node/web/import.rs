//! Import of a model from the web: its header first, then its tensors shard by shard.

use reqwest::Response;

use crate::base::ModelId;
use crate::model::ModelError;
use crate::model::catalog::{Catalog, HeaderIngest, RangeIngest, RangeSource, StreamIngest, StreamOptions};
use crate::model::gguf::Gguf;
use crate::model::shard::GROUP;
use crate::node::api::request::ImportOptions;
use crate::node::blocking::blocking;
use crate::node::models::examine::Examination;
use crate::node::models::transfer::fault;
use crate::node::web::client::Client;
use crate::node::web::error::WebError;
use crate::node::web::known::{self, KnownImport};
use crate::node::web::reader::Reader;
use crate::node::web::remote::{Opened, Remote};

/// Imports the file of `client`. Cancel-safe: received bytes are kept for the next import.
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
    let (ingest, first) = header(catalog, remote.origin(), &mut reader).await?;
    let tail = ingest.tail(&first);
    let header = examine(examination, remote.whole_header(first).await?).await?;
    let (ingest, header) = match known::import(catalog, &remote, (ingest, header, &tail), options).await? {
        KnownImport::Done(model) => return Ok(model),
        KnownImport::Other(ingest, header) => (*ingest, *header),
    };
    let mut ingest = into_shards(ingest, header, remote.client().stem(), options).await?;
    let shards: Vec<usize> = (0..ingest.sharding().manifest.shards.len()).collect();
    reader.plan(ingest.sharding(), &shards, tail);
    options.report_progress(ingest.progress());
    while let Some((pieces, len)) = ingest.next() {
        let group = reader.group(&pieces, len).await?;
        ingest = blocking(move || ingest.write(&group).map(|()| ingest).map_err(fault)).await?;
        options.report_progress(ingest.progress());
    }
    Ok(blocking(move || ingest.finish().map_err(fault)).await?)
}

/// Fetches a model's header alone.
pub(super) async fn header_alone(client: Client) -> Result<Gguf, WebError> {
    let (mut response, len) = match Remote::open(client.clone()).await? {
        Opened::Ranges(remote) => {
            let (first, _) = remote.first_header().await?;
            return remote.whole_header(first).await;
        }
        Opened::Whole(response, len) => (response, len),
    };
    let (mut left, mut bytes, mut wanted) = (client.timeouts.group, Vec::new(), GROUP.min(len));
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
        (left, wanted) = (client.timeouts.group, wanted.saturating_mul(2).min(len));
    }
}

/// Examines the model before anything but its header is fetched.
async fn examine(examination: &Examination, header: Gguf) -> Result<Gguf, WebError> {
    let examination = examination.clone();
    let done = blocking(move || Ok((examination.check(&header), header))).await?;
    done.0?;
    Ok(done.1)
}

/// Cuts the model.
async fn into_shards(
    ingest: HeaderIngest,
    header: Gguf,
    stem: Option<String>,
    options: &ImportOptions,
) -> Result<RangeIngest, WebError> {
    let options = options.clone();
    let start =
        move || ingest.into_shards(&header, options.name.as_deref(), stem.as_deref(), |kind| options.keeps(kind));
    Ok(blocking(move || start().map_err(fault)).await?)
}

/// Fetches the beginning of the file or of the first part until the header is complete.
async fn header(catalog: &Catalog, origin: RangeSource, reader: &mut Reader) -> Result<(HeaderIngest, Gguf), WebError> {
    let catalog = catalog.clone();
    let begin = move || {
        let mut ingest = catalog.ingest(origin)?;
        let header = ingest.header()?;
        Ok((ingest, header))
    };
    let (mut ingest, mut header) = blocking(move || begin().map_err(fault)).await?;
    loop {
        if let Some(header) = header {
            return Ok((ingest, header));
        }
        let piece = ingest.next();
        let group = reader.group(&[piece], piece.len).await?;
        let go_on = move || {
            ingest.write(&group)?;
            let header = ingest.header()?;
            Ok((ingest, header))
        };
        (ingest, header) = blocking(move || go_on().map_err(fault)).await?;
    }
}

/// Imports the whole file from a server without ranges.
async fn whole(
    catalog: &Catalog,
    client: Client,
    (mut response, len): (Response, u64),
    options: &ImportOptions,
    examination: &Examination,
) -> Result<ModelId, WebError> {
    let kept = options.clone();
    let (alias, stem) = (options.name.clone(), client.stem());
    let choice = StreamOptions { alias, stem, keep: Box::new(move |kind| kept.keeps(kind)) };
    let mut ingest = catalog.stream_ingest(client.shown(), len, choice);
    let mut left = client.timeouts.group;
    let mut bytes = Vec::new();
    while ingest.remaining() > bytes.len() as u64 {
        let missing = ingest.remaining() - bytes.len() as u64;
        let chunk = client.chunk(&mut response, &mut left).await?;
        let chunk = chunk.ok_or_else(|| WebError::Short { host: client.host(), missing })?;
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 >= GROUP.min(ingest.remaining()) {
            left = client.timeouts.group;
            ingest = write(ingest, std::mem::take(&mut bytes)).await?;
            if let Some(header) = ingest.take_header() {
                examine(examination, header).await?;
            }
            options.report_progress(ingest.progress());
        }
    }
    drop(response);
    Ok(blocking(move || ingest.finish().map_err(fault)).await?)
}

async fn write(mut ingest: StreamIngest, bytes: Vec<u8>) -> Result<StreamIngest, WebError> {
    let write = move || -> Result<StreamIngest, ModelError> {
        ingest.write(&bytes)?;
        Ok(ingest)
    };
    Ok(blocking(move || write().map_err(fault)).await?)
}
