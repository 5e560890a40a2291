//! Nodes: each act twice, blocking and awaitable. Structures cross as JSON text, which Python's half turns into records.

use std::path::PathBuf;

use pyo3::prelude::*;
use swarmllm_core::node::{
    ChatRequest, EmbedRequest, GenerateOptions, GenerateRequest, ImportOptions, Node, Parts, ProgressFn, Prompt,
    WebSource,
};

use crate::errors::{Failure, json};
use crate::generation::NativeGeneration;
use crate::options::{self, NodeConfig, Options, Part, Templated, Web, seconds, web};
use crate::wait::{awaitable, awaitable_reporting, awaitable_thread, block, block_reporting, drop_detached};

/// A running node.
#[pyclass(frozen, module = "swarmllm._swarmllm")]
pub struct NativeNode {
    // Empty only while it is dropped.
    node: Option<Node>,
}

impl Drop for NativeNode {
    fn drop(&mut self) {
        drop_detached(self.node.take());
    }
}

impl NativeNode {
    fn node(&self) -> Result<Node, Failure> {
        let gone = || Failure::new(swarmllm_core::base::ErrorKind::Closed, "the node is being dropped");
        self.node.clone().ok_or_else(gone)
    }
}

async fn connect(node: Node, address: String) -> Result<String, Failure> {
    Ok(node.connect(&address).await?.to_string())
}

async fn import(node: Node, path: PathBuf, options: ImportOptions) -> Result<String, Failure> {
    json(&node.import(&path, options).await?)
}

async fn import_url(node: Node, source: WebSource, options: ImportOptions) -> Result<String, Failure> {
    json(&node.import_url(source, options).await?)
}

async fn examine(node: Node, path: PathBuf, parts: Option<Vec<Parts>>) -> Result<String, Failure> {
    json(&node.examine(&path, ImportOptions { parts, ..ImportOptions::default() }).await?)
}

async fn examine_url(node: Node, source: WebSource, parts: Option<Vec<Parts>>) -> Result<String, Failure> {
    json(&node.examine_url(source, ImportOptions { parts, ..ImportOptions::default() }).await?)
}

async fn pull_url(
    node: Node,
    model: String,
    parts: Parts,
    source: WebSource,
    progress: Option<ProgressFn>,
) -> Result<String, Failure> {
    json(&node.pull_url(&model, parts, source, progress).await?)
}

async fn pull(node: Node, model: String, parts: Parts, progress: Option<ProgressFn>) -> Result<String, Failure> {
    json(&node.pull(&model, parts, progress).await?)
}

async fn pin(node: Node, model: String, on: bool) -> Result<(), Failure> {
    Ok(node.pin(&model, on).await?)
}

async fn add_alias(node: Node, model: String, alias: String) -> Result<String, Failure> {
    json(&node.add_alias(&model, &alias).await?)
}

async fn move_alias(node: Node, model: String, alias: String) -> Result<String, Failure> {
    json(&node.move_alias(&model, &alias).await?)
}

async fn remove_alias(node: Node, alias: String) -> Result<(), Failure> {
    Ok(node.remove_alias(&alias).await?)
}

async fn remove(node: Node, model: String) -> Result<u64, Failure> {
    Ok(node.remove(&model).await?.freed)
}

async fn make_room(node: Node, bytes: u64) -> Result<Vec<String>, Failure> {
    Ok(node.make_room(bytes).await?.iter().map(ToString::to_string).collect())
}

async fn plan(node: Node, model: String) -> Result<String, Failure> {
    json(&node.plan(&model).await?)
}

async fn shutdown(node: Node, deadline: std::time::Duration) -> Result<(), Failure> {
    node.shutdown(deadline).await;
    Ok(())
}

async fn chat(node: Node, request: ChatRequest) -> Result<NativeGeneration, Failure> {
    let generation = node.chat(request).await?;
    NativeGeneration::new(node, generation)
}

async fn generate(
    node: Node,
    model: String,
    prompt: String,
    options: GenerateOptions,
) -> Result<NativeGeneration, Failure> {
    let request = GenerateRequest { model, prompt: Prompt::Text(prompt), options };
    let generation = node.generate(request).await?;
    NativeGeneration::new(node, generation)
}

fn embed_request(
    model: String,
    texts: Vec<String>,
    pooling: &str,
    caller: Option<String>,
) -> Result<EmbedRequest, Failure> {
    let inputs = texts.into_iter().map(Prompt::Text).collect();
    Ok(EmbedRequest {
        model,
        inputs,
        pooling: options::pooling(pooling)?,
        deadline: None,
        caller: caller.unwrap_or_default(),
    })
}

async fn embed(node: Node, request: EmbedRequest) -> Result<String, Failure> {
    json(&node.embed(request).await?)
}

fn parts(parts: Option<Vec<Part>>) -> Result<Option<Vec<Parts>>, Failure> {
    parts.map(|parts| parts.into_iter().map(Part::convert).collect()).transpose()
}

#[pymethods]
impl NativeNode {
    #[staticmethod]
    fn start(py: Python<'_>, config: NodeConfig) -> PyResult<Self> {
        let builder = config.builder()?;
        let node = py.detach(|| builder.start_blocking()).map_err(Failure::from)?;
        Ok(Self { node: Some(node) })
    }

    #[staticmethod]
    fn start_async(py: Python<'_>, config: NodeConfig) -> PyResult<Bound<'_, PyAny>> {
        let builder = config.builder()?;
        awaitable_thread(py, move || Ok(NativeNode { node: Some(builder.start_blocking()?) }))
    }

    #[getter]
    fn id(&self) -> PyResult<String> {
        Ok(self.node()?.id().to_string())
    }

    #[getter]
    fn addresses(&self) -> PyResult<Vec<String>> {
        Ok(self.node()?.addresses())
    }

    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let node = self.node()?;
        Ok(py.detach(|| json(&node.status()))?)
    }

    fn models(&self, py: Python<'_>) -> PyResult<String> {
        let node = self.node()?;
        Ok(py.detach(|| json(&node.models()))?)
    }

    fn invite(&self, py: Python<'_>, good_for: f64) -> PyResult<String> {
        let (node, good_for) = (self.node()?, seconds(good_for)?);
        Ok(py.detach(|| node.invite(good_for)).map_err(Failure::from)?)
    }

    fn balances(&self, py: Python<'_>) -> PyResult<String> {
        let node = self.node()?;
        Ok(py.detach(|| json(&node.balances()))?)
    }

    fn peers(&self, py: Python<'_>) -> PyResult<String> {
        let node = self.node()?;
        Ok(py.detach(|| json(&node.peers()))?)
    }

    fn connect(&self, py: Python<'_>, address: String) -> PyResult<String> {
        let node = self.node()?;
        block(py, &node.runtime(), connect(node.clone(), address))
    }

    fn connect_async<'py>(&self, py: Python<'py>, address: String) -> PyResult<Bound<'py, PyAny>> {
        let node = self.node()?;
        awaitable(py, &node.runtime(), connect(node.clone(), address))
    }

    fn import_model(
        &self,
        py: Python<'_>,
        path: PathBuf,
        name: Option<String>,
        parts: Option<Vec<Part>>,
        anyway: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        let (node, parts) = (self.node()?, self::parts(parts)?);
        block_reporting(py, &node.runtime(), progress, |progress| {
            import(node.clone(), path, ImportOptions { name, parts, anyway, progress })
        })
    }

    fn import_model_async<'py>(
        &self,
        py: Python<'py>,
        path: PathBuf,
        name: Option<String>,
        parts: Option<Vec<Part>>,
        anyway: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, parts) = (self.node()?, self::parts(parts)?);
        awaitable_reporting(py, &node.runtime(), progress, |progress| {
            import(node.clone(), path, ImportOptions { name, parts, anyway, progress })
        })
    }

    fn import_url(
        &self,
        py: Python<'_>,
        source: Web,
        name: Option<String>,
        parts: Option<Vec<Part>>,
        anyway: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        let (node, source, parts) = (self.node()?, web(source), self::parts(parts)?);
        block_reporting(py, &node.runtime(), progress, |progress| {
            import_url(node.clone(), source, ImportOptions { name, parts, anyway, progress })
        })
    }

    fn import_url_async<'py>(
        &self,
        py: Python<'py>,
        source: Web,
        name: Option<String>,
        parts: Option<Vec<Part>>,
        anyway: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, source, parts) = (self.node()?, web(source), self::parts(parts)?);
        awaitable_reporting(py, &node.runtime(), progress, |progress| {
            import_url(node.clone(), source, ImportOptions { name, parts, anyway, progress })
        })
    }

    fn examine(&self, py: Python<'_>, path: PathBuf, parts: Option<Vec<Part>>) -> PyResult<String> {
        let (node, parts) = (self.node()?, self::parts(parts)?);
        block(py, &node.runtime(), examine(node.clone(), path, parts))
    }

    fn examine_async<'py>(
        &self,
        py: Python<'py>,
        path: PathBuf,
        parts: Option<Vec<Part>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, parts) = (self.node()?, self::parts(parts)?);
        awaitable(py, &node.runtime(), examine(node.clone(), path, parts))
    }

    fn examine_url(&self, py: Python<'_>, source: Web, parts: Option<Vec<Part>>) -> PyResult<String> {
        let (node, source, parts) = (self.node()?, web(source), self::parts(parts)?);
        block(py, &node.runtime(), examine_url(node.clone(), source, parts))
    }

    fn examine_url_async<'py>(
        &self,
        py: Python<'py>,
        source: Web,
        parts: Option<Vec<Part>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, source, parts) = (self.node()?, web(source), self::parts(parts)?);
        awaitable(py, &node.runtime(), examine_url(node.clone(), source, parts))
    }

    fn pull_url(
        &self,
        py: Python<'_>,
        model: String,
        source: Web,
        part: Part,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        let (node, source, part) = (self.node()?, web(source), part.convert()?);
        block_reporting(py, &node.runtime(), progress, |progress| pull_url(node.clone(), model, part, source, progress))
    }

    fn pull_url_async<'py>(
        &self,
        py: Python<'py>,
        model: String,
        source: Web,
        part: Part,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, source, part) = (self.node()?, web(source), part.convert()?);
        awaitable_reporting(py, &node.runtime(), progress, |progress| {
            pull_url(node.clone(), model, part, source, progress)
        })
    }

    fn pull(&self, py: Python<'_>, model: String, part: Part, progress: Option<Py<PyAny>>) -> PyResult<String> {
        let (node, part) = (self.node()?, part.convert()?);
        block_reporting(py, &node.runtime(), progress, |progress| pull(node.clone(), model, part, progress))
    }

    fn pull_async<'py>(
        &self,
        py: Python<'py>,
        model: String,
        part: Part,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, part) = (self.node()?, part.convert()?);
        awaitable_reporting(py, &node.runtime(), progress, |progress| pull(node.clone(), model, part, progress))
    }

    fn pin(&self, py: Python<'_>, model: String, on: bool) -> PyResult<()> {
        let node = self.node()?;
        block(py, &node.runtime(), pin(node.clone(), model, on))
    }

    fn pin_async<'py>(&self, py: Python<'py>, model: String, on: bool) -> PyResult<Bound<'py, PyAny>> {
        let node = self.node()?;
        awaitable(py, &node.runtime(), pin(node.clone(), model, on))
    }

    fn add_alias(&self, py: Python<'_>, model: String, alias: String) -> PyResult<String> {
        let node = self.node()?;
        block(py, &node.runtime(), add_alias(node.clone(), model, alias))
    }

    fn add_alias_async<'py>(&self, py: Python<'py>, model: String, alias: String) -> PyResult<Bound<'py, PyAny>> {
        let node = self.node()?;
        awaitable(py, &node.runtime(), add_alias(node.clone(), model, alias))
    }

    fn move_alias(&self, py: Python<'_>, model: String, alias: String) -> PyResult<String> {
        let node = self.node()?;
        block(py, &node.runtime(), move_alias(node.clone(), model, alias))
    }

    fn move_alias_async<'py>(&self, py: Python<'py>, model: String, alias: String) -> PyResult<Bound<'py, PyAny>> {
        let node = self.node()?;
        awaitable(py, &node.runtime(), move_alias(node.clone(), model, alias))
    }

    fn remove_alias(&self, py: Python<'_>, alias: String) -> PyResult<()> {
        let node = self.node()?;
        block(py, &node.runtime(), remove_alias(node.clone(), alias))
    }

    fn remove_alias_async<'py>(&self, py: Python<'py>, alias: String) -> PyResult<Bound<'py, PyAny>> {
        let node = self.node()?;
        awaitable(py, &node.runtime(), remove_alias(node.clone(), alias))
    }

    fn remove(&self, py: Python<'_>, model: String) -> PyResult<u64> {
        let node = self.node()?;
        block(py, &node.runtime(), remove(node.clone(), model))
    }

    fn remove_async<'py>(&self, py: Python<'py>, model: String) -> PyResult<Bound<'py, PyAny>> {
        let node = self.node()?;
        awaitable(py, &node.runtime(), remove(node.clone(), model))
    }

    fn make_room(&self, py: Python<'_>, bytes: u64) -> PyResult<Vec<String>> {
        let node = self.node()?;
        block(py, &node.runtime(), make_room(node.clone(), bytes))
    }

    fn make_room_async<'py>(&self, py: Python<'py>, bytes: u64) -> PyResult<Bound<'py, PyAny>> {
        let node = self.node()?;
        awaitable(py, &node.runtime(), make_room(node.clone(), bytes))
    }

    fn plan(&self, py: Python<'_>, model: String) -> PyResult<String> {
        let node = self.node()?;
        block(py, &node.runtime(), plan(node.clone(), model))
    }

    fn plan_async<'py>(&self, py: Python<'py>, model: String) -> PyResult<Bound<'py, PyAny>> {
        let node = self.node()?;
        awaitable(py, &node.runtime(), plan(node.clone(), model))
    }

    fn chat(
        &self,
        py: Python<'_>,
        model: String,
        messages: &str,
        options: Options,
        templated: Templated,
    ) -> PyResult<NativeGeneration> {
        let (node, request) = (self.node()?, options::chat(model, messages, options, templated)?);
        block(py, &node.runtime(), chat(node.clone(), request))
    }

    fn chat_async<'py>(
        &self,
        py: Python<'py>,
        model: String,
        messages: &str,
        options: Options,
        templated: Templated,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, request) = (self.node()?, options::chat(model, messages, options, templated)?);
        awaitable(py, &node.runtime(), chat(node.clone(), request))
    }

    fn generate(&self, py: Python<'_>, model: String, prompt: String, options: Options) -> PyResult<NativeGeneration> {
        let (node, options) = (self.node()?, options.convert()?);
        block(py, &node.runtime(), generate(node.clone(), model, prompt, options))
    }

    fn generate_async<'py>(
        &self,
        py: Python<'py>,
        model: String,
        prompt: String,
        options: Options,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, options) = (self.node()?, options.convert()?);
        awaitable(py, &node.runtime(), generate(node.clone(), model, prompt, options))
    }

    fn embed(
        &self,
        py: Python<'_>,
        model: String,
        texts: Vec<String>,
        pooling: &str,
        caller: Option<String>,
    ) -> PyResult<String> {
        let (node, request) = (self.node()?, embed_request(model, texts, pooling, caller)?);
        block(py, &node.runtime(), embed(node.clone(), request))
    }

    fn embed_async<'py>(
        &self,
        py: Python<'py>,
        model: String,
        texts: Vec<String>,
        pooling: &str,
        caller: Option<String>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (node, request) = (self.node()?, embed_request(model, texts, pooling, caller)?);
        awaitable(py, &node.runtime(), embed(node.clone(), request))
    }

    fn shutdown(&self, py: Python<'_>, deadline: f64) -> PyResult<()> {
        let (node, deadline) = (self.node()?, seconds(deadline)?);
        block(py, &node.runtime(), shutdown(node.clone(), deadline))
    }

    fn shutdown_async<'py>(&self, py: Python<'py>, deadline: f64) -> PyResult<Bound<'py, PyAny>> {
        let (node, deadline) = (self.node()?, seconds(deadline)?);
        // `None` by name: awaited, `()` would be an empty tuple.
        let work = shutdown(node.clone(), deadline);
        awaitable(py, &node.runtime(), async move { work.await.map(|()| None::<String>) })
    }
}
