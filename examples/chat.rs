//! Starts a node, imports a model, asks it, prints the route, stops. `example-chat FILE.gguf|MODEL [QUESTION]`

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use swarmllm_core::node::{ChatMessage, ChatRequest, Delta, GenerateOptions, ImportOptions, Node, Preset};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: example-chat FILE.gguf|MODEL [QUESTION]")?;
    let question = arguments.next().unwrap_or_else(|| "What is a swarm?".to_owned());

    let node = Node::builder().preset(Preset::Lan).start().await?;
    let model = match Path::new(&model) {
        file if file.is_file() => node.import(file, ImportOptions::default()).await?.id.to_string(),
        _ => model,
    };
    let mut answer = node
        .chat(ChatRequest {
            model,
            messages: vec![ChatMessage { role: "user".to_owned(), content: question }],
            options: GenerateOptions { max_tokens: Some(64), ..GenerateOptions::default() },
            ..ChatRequest::default()
        })
        .await?;
    while let Some(delta) = answer.next().await {
        match delta? {
            Delta::Text(text) => print!("{text}"),
            // Only with `logprobs`.
            Delta::Token(_) => {}
            Delta::Done(done) => {
                println!();
                for stage in &done.route {
                    println!("layers {} on {} by {}", stage.layers, stage.node.short(), stage.engine);
                }
            }
        }
        std::io::stdout().flush()?;
    }
    node.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
