//! Nodes: each call in a blocking and an awaitable form. Structures cross as JSON text; `python/swarmllm` makes records of it.

use std::path::PathBuf;

use pyo3::prelude::*;
use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::{EmbedRequest, GenerateRequest, ImportOptions, Node, Parts, Prompt};

use crate::errors::{Failure, json};
use crate::generation::NativeGeneration;
use crate::options::{self, NodeConfig, Options, Part, Templated, Web, seconds, web};
use crate::wait::{awaitable, awaitable_reporting, awaitable_thread, block, block_reporting, drop_detached};

/// The result of a call without one. An awaited `()` would be an empty tuple.
const NOTHING: Option<()> = None;

/// A running node.
#[pyclass(frozen, module = "swarmllm._swarmllm")]
pub struct NativeNode {
    // `None` only during the drop.
    node: Option<Node>,
}

impl Drop for NativeNode {
    fn drop(&mut self) {
        drop_detached(self.node.take());
    }
}

impl NativeNode {
    fn node(&self) -> Result<Node, Failure> {
        self.node.clone().ok_or_else(|| Failure::new(ErrorKind::Closed, "the node is being dropped"))
    }
}

fn convert_parts(parts: Option<Vec<Part>>) -> Result<Option<Vec<Parts>>, Failure> {
    parts.map(|parts| parts.into_iter().map(Part::convert).collect()).transpose()
}

/// The methods of [`NativeNode`]. Each line of `waiting` becomes a blocking and an awaitable method; those of `reporting`
/// have one more argument, `progress`, a callable or None. `immediate` is copied: one class has one block of methods.
macro_rules! methods {
    (
        immediate { $($immediate:tt)* }
        waiting { $($name:ident / $twin:ident($($arg:ident: $type:ty),*) -> $result:ty = |$node:ident| $work:expr;)* }
        reporting { $(
            $long:ident / $long_twin:ident($($given:ident: $of:ty),*) -> $end:ty = |$of_node:ident, $report:ident| $act:expr;
        )* }
    ) => {
        #[pymethods]
        impl NativeNode {
            $($immediate)*

            $(
                fn $name(&self, py: Python<'_>, $($arg: $type),*) -> PyResult<$result> {
                    let $node = self.node()?;
                    block(py, &$node.runtime(), $work)
                }

                fn $twin<'py>(&self, py: Python<'py>, $($arg: $type),*) -> PyResult<Bound<'py, PyAny>> {
                    let $node = self.node()?;
                    awaitable(py, &$node.runtime(), $work)
                }
            )*

            $(
                fn $long(&self, py: Python<'_>, $($given: $of,)* progress: Option<Py<PyAny>>) -> PyResult<$end> {
                    let $of_node = self.node()?;
                    block_reporting(py, &$of_node.runtime(), progress, move |$report| $act)
                }

                fn $long_twin<'py>(
                    &self,
                    py: Python<'py>,
                    $($given: $of,)*
                    progress: Option<Py<PyAny>>,
                ) -> PyResult<Bound<'py, PyAny>> {
                    let $of_node = self.node()?;
                    awaitable_reporting(py, &$of_node.runtime(), progress, move |$report| $act)
                }
            )*
        }
    };
}

methods! {
    immediate {
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

        fn peers(&self, py: Python<'_>) -> PyResult<String> {
            let node = self.node()?;
            Ok(py.detach(|| json(&node.peers()))?)
        }

        fn balances(&self, py: Python<'_>) -> PyResult<String> {
            let node = self.node()?;
            Ok(py.detach(|| json(&node.balances()))?)
        }

        fn invite(&self, py: Python<'_>, good_for: f64) -> PyResult<String> {
            let (node, good_for) = (self.node()?, seconds(good_for)?);
            Ok(py.detach(|| node.invite(good_for)).map_err(Failure::from)?)
        }
    }

    waiting {
        connect / connect_async(address: String) -> String = |node| async move {
            Ok(node.connect(&address).await?.to_string())
        };
        examine / examine_async(path: PathBuf, parts: Option<Vec<Part>>) -> String = |node| async move {
            let options = ImportOptions { parts: convert_parts(parts)?, ..ImportOptions::default() };
            json(&node.examine(&path, options).await?)
        };
        examine_url / examine_url_async(source: Web, parts: Option<Vec<Part>>) -> String = |node| async move {
            let options = ImportOptions { parts: convert_parts(parts)?, ..ImportOptions::default() };
            json(&node.examine_url(web(source), options).await?)
        };
        pin / pin_async(model: String, on: bool) -> Option<()> = |node| async move {
            node.pin(&model, on).await?;
            Ok(NOTHING)
        };
        add_alias / add_alias_async(model: String, alias: String) -> String = |node| async move {
            json(&node.add_alias(&model, &alias).await?)
        };
        move_alias / move_alias_async(model: String, alias: String) -> String = |node| async move {
            json(&node.move_alias(&model, &alias).await?)
        };
        remove_alias / remove_alias_async(alias: String) -> Option<()> = |node| async move {
            node.remove_alias(&alias).await?;
            Ok(NOTHING)
        };
        remove / remove_async(model: String) -> u64 = |node| async move {
            Ok(node.remove(&model).await?.freed)
        };
        make_room / make_room_async(bytes: u64) -> Vec<String> = |node| async move {
            Ok(node.make_room(bytes).await?.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        plan / plan_async(model: String) -> String = |node| async move {
            json(&node.plan(&model).await?)
        };
        chat / chat_async(
            model: String,
            messages: String,
            options: Options,
            templated: Templated
        ) -> NativeGeneration = |node| async move {
            let generation = node.chat(options::chat(model, &messages, options, templated)?).await?;
            NativeGeneration::new(node, generation)
        };
        generate / generate_async(
            model: String,
            prompt: String,
            options: Options
        ) -> NativeGeneration = |node| async move {
            let request = GenerateRequest { model, prompt: Prompt::Text(prompt), options: options.into() };
            let generation = node.generate(request).await?;
            NativeGeneration::new(node, generation)
        };
        embed / embed_async(
            model: String,
            texts: Vec<String>,
            pooling: String,
            caller: Option<String>
        ) -> String = |node| async move {
            let inputs = texts.into_iter().map(Prompt::Text).collect();
            let (pooling, caller) = (options::pooling(&pooling)?, caller.unwrap_or_default());
            json(&node.embed(EmbedRequest { model, inputs, pooling, deadline: None, caller }).await?)
        };
        shutdown / shutdown_async(deadline: f64) -> Option<()> = |node| async move {
            node.shutdown(seconds(deadline)?).await;
            Ok(NOTHING)
        };
    }

    reporting {
        import_model / import_model_async(
            path: PathBuf,
            name: Option<String>,
            parts: Option<Vec<Part>>,
            anyway: bool
        ) -> String = |node, progress| async move {
            json(&node.import(&path, ImportOptions { name, parts: convert_parts(parts)?, anyway, progress }).await?)
        };
        import_url / import_url_async(
            source: Web,
            name: Option<String>,
            parts: Option<Vec<Part>>,
            anyway: bool
        ) -> String = |node, progress| async move {
            let options = ImportOptions { name, parts: convert_parts(parts)?, anyway, progress };
            json(&node.import_url(web(source), options).await?)
        };
        pull / pull_async(model: String, part: Part) -> String = |node, progress| async move {
            json(&node.pull(&model, part.convert()?, progress).await?)
        };
        pull_url / pull_url_async(model: String, source: Web, part: Part) -> String = |node, progress| async move {
            json(&node.pull_url(&model, part.convert()?, web(source), progress).await?)
        };
    }
}
