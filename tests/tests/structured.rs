//! Sampling and constrained answers with a real model over two stages.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use swarmllm_core::base::{ErrorKind, ModelId};
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{
    ChatMessage, ChatRequest, Completion, Constraint, Delta, FinishReason, GenerateError, GenerateOptions,
    GenerateRequest, Node, Preset, Prompt, TemplateInputs,
};
use swarmllm_core::server::{ServerConfig, serve};
use swarmllm_tests::cluster::{Cluster, Transport, greedy};
use swarmllm_tests::in_time;
use swarmllm_tests::models::TestModel;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper wrote down who had come:";

async fn ask(node: &Node, model: ModelId, options: GenerateOptions) -> Result<Completion, GenerateError> {
    let (model, prompt) = (model.to_string(), Prompt::Text(TEXT.to_owned()));
    in_time("an answer", async { node.generate(GenerateRequest { model, prompt, options }).await?.finish().await })
        .await
}

fn drawn(seed: u64, tokens: u32) -> GenerateOptions {
    let sampling = SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
    GenerateOptions { max_tokens: Some(tokens), sampling, ..GenerateOptions::default() }
}

fn guest() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "boats": {"type": "array", "items": {"enum": ["gig", "skiff", "yawl"]}, "maxItems": 3},
            "captain": {"type": "boolean"},
        },
        "required": ["name", "age", "boats", "captain"],
        "additionalProperties": false,
    })
}

/// Whether the value matches [`guest`].
fn is_guest(value: &Value) -> bool {
    let name = value["name"].as_str().is_some_and(|name| (1..=20).contains(&name.chars().count()));
    let age = value["age"].as_u64().is_some_and(|age| age <= 120);
    let known = |boat: &Value| ["gig", "skiff", "yawl"].map(Value::from).contains(boat);
    let boats = value["boats"].as_array().is_some_and(|boats| boats.len() <= 3 && boats.iter().all(known));
    let fields = value.as_object().map(|fields| fields.len()) == Some(4);
    name && age && boats && fields && value["captain"].is_boolean()
}

#[tokio::test(flavor = "multi_thread")]
async fn constrained_answers_are_valid_at_any_temperature_and_reproducible() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let constrained =
        |seed, constraint: &Constraint| GenerateOptions { constraint: Some(constraint.clone()), ..drawn(seed, 300) };
    let schema = Constraint::JsonSchema(guest());
    let mut texts = Vec::new();
    for seed in 0..5 {
        let done = ask(cluster.node(), cluster.model, constrained(seed, &schema)).await.expect("the swarm answers");
        assert_eq!((done.finish, done.route.len(), done.draft_tokens), (FinishReason::Stop, 2, 0), "{}", done.text);
        let value: Value = serde_json::from_str(&done.text).expect("the answer is JSON");
        assert!(is_guest(&value), "{value}");
        texts.push(done.text);
    }
    texts.sort();
    texts.dedup();
    assert!(texts.len() > 1, "different seeds yield different texts: {texts:?}");
    let again = ask(cluster.node(), cluster.model, constrained(0, &schema)).await.expect("the swarm answers");
    assert!(texts.contains(&again.text));
    let forms = [
        (Constraint::Regex("[0-9]{2}:[0-9]{2}".to_owned()), 5),
        (Constraint::Lark("start: \"yes\" | \"no \"".to_owned()), 3),
    ];
    for (form, longest) in forms {
        let done = ask(cluster.node(), cluster.model, constrained(1, &form)).await.expect("the swarm answers");
        assert_eq!(done.finish, FinishReason::Stop, "{form:?}");
        assert!(!done.text.is_empty() && done.text.len() <= longest, "{form:?}: {}", done.text);
    }
    let cut = GenerateOptions { max_tokens: Some(3), ..constrained(2, &schema) };
    let cut = ask(cluster.node(), cluster.model, cut).await.expect("the swarm answers");
    assert_eq!((cut.finish, cut.completion_tokens), (FinishReason::Length, 3));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn constraints_work_with_sentencepiece_vocabularies() {
    let cluster = Cluster::start(TestModel::Gemma3, Transport::Tcp, 1).await;
    let options = GenerateOptions { constraint: Some(Constraint::JsonSchema(guest())), ..drawn(1, 400) };
    let done = ask(cluster.node(), cluster.model, options).await.expect("the swarm answers");
    assert!(is_guest(&serde_json::from_str(&done.text).expect("the answer is JSON")), "{}", done.text);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_constraint_is_a_typed_error() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let table = [
        (Constraint::JsonSchema(json!({"enum": []})), "Unsatisfiable"),
        (Constraint::Lark("start: start \"a\"".to_owned()), "admits no text"),
        (Constraint::Lark("start: A\nA: /a/ & /b/".to_owned()), ""),
        (Constraint::JsonSchema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (Constraint::Regex("(".to_owned()), ""),
        (Constraint::Regex("a".repeat(1 << 20)), "65536"),
    ];
    for (constraint, names) in table {
        let options = GenerateOptions { constraint: Some(constraint), ..greedy(4) };
        match ask(cluster.node(), cluster.model, options).await {
            Err(GenerateError::Refused(fault)) => {
                assert_eq!(fault.kind(), ErrorKind::InvalidArgument, "{fault}");
                assert!(fault.message().contains(names), "{fault}");
            }
            other => panic!("{names}: {other:?}"),
        }
    }
    let plain = ask(cluster.node(), cluster.model, greedy(4)).await.expect("the node still answers");
    assert_eq!(plain.completion_tokens, 4);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_ignore_constraints_and_biases() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let told = |alternatives| GenerateOptions { logprobs: Some(alternatives), ..greedy(8) };
    let few = ask(cluster.node(), cluster.model, told(5)).await.expect("the swarm answers");
    let tokens = few.logprobs.as_ref().expect("they were asked for");
    let chosen: Vec<u32> = tokens.iter().map(|token| token.chosen.token).collect();
    assert_eq!(chosen, few.tokens);
    let text: Vec<u8> = tokens.iter().flat_map(|token| token.chosen.bytes.clone()).collect();
    assert_eq!(String::from_utf8_lossy(&text), few.text);
    for token in tokens {
        assert_eq!((token.alternatives.len(), &token.alternatives[0]), (5, &token.chosen), "greedy takes the best");
        assert!(token.alternatives.is_sorted_by(|one, two| one.logprob >= two.logprob));
        let sum: f32 = token.alternatives.iter().map(|other| other.logprob.exp()).sum();
        assert!(sum > 0.0 && sum < 1.0 + 1e-4, "probabilities of some tokens sum to {sum}");
    }
    // The same rows with full logits: with a constraint that admits everything, and with a bias on an unlikely token. The
    // log-probabilities do not change.
    let anything = Constraint::Regex("(?s:.*)".to_owned());
    let full = GenerateOptions { constraint: Some(anything), ..told(5) };
    let full = ask(cluster.node(), cluster.model, full).await.expect("the swarm answers");
    let mut biased = told(5);
    biased.sampling.logit_bias = BTreeMap::from([(40_000, 0.001)]);
    let biased = ask(cluster.node(), cluster.model, biased).await.expect("the swarm answers");
    assert_eq!((&full.tokens, &biased.tokens), (&few.tokens, &few.tokens));
    for other in [full, biased] {
        for (one, two) in tokens.iter().zip(other.logprobs.expect("they were asked for")) {
            let likely = |token: &swarmllm_core::node::TokenLogprob| -> Vec<u32> {
                token.alternatives.iter().map(|other| other.token).collect()
            };
            assert_eq!(likely(one), likely(&two));
            assert!((one.chosen.logprob - two.chosen.logprob).abs() < 1e-4, "{one:?} {two:?}");
        }
    }
    let none = ask(cluster.node(), cluster.model, greedy(2)).await.expect("the swarm answers");
    assert_eq!((none.logprobs, &none.tokens[..]), (None, &few.tokens[..2]));
    let refused = ask(cluster.node(), cluster.model, told(21)).await.expect_err("more than are told");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_precede_the_text_they_complete() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let options = GenerateOptions { logprobs: Some(0), ..greedy(6) };
    let request = GenerateRequest { model: cluster.model.to_string(), prompt: Prompt::Text(TEXT.to_owned()), options };
    let mut generation = cluster.node().generate(request.clone()).await.expect("the swarm answers");
    let (mut tokens, mut bytes, mut text) = (0, Vec::new(), String::new());
    while let Some(delta) = in_time("a delta", generation.next()).await {
        match delta.expect("the swarm answers") {
            Delta::Token(token) => {
                assert!(token.alternatives.is_empty());
                bytes.extend(token.chosen.bytes);
                tokens += 1;
            }
            Delta::Text(more) => {
                text.push_str(&more);
                assert!(String::from_utf8_lossy(&bytes).starts_with(&text), "{text}");
            }
            Delta::Done(done) => {
                assert_eq!((done.completion_tokens, &done.text), (tokens, &text));
                let kept =
                    done.logprobs.into_iter().flatten().flat_map(|token| token.chosen.bytes).collect::<Vec<u8>>();
                assert_eq!(kept, bytes, "the completion has all bytes");
            }
        }
    }
    assert_eq!(tokens, 6);
    let mut passed_on = cluster.node().generate(request).await.expect("the swarm answers");
    passed_on.discard_logprobs();
    let done = in_time("an answer", passed_on.finish()).await.expect("the swarm answers");
    assert_eq!((done.completion_tokens, done.logprobs), (6, None), "streamed log-probabilities are not kept");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bias_bans_and_forces_tokens() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let biased = |biases: &[(u32, f32)]| {
        let mut options = greedy(6);
        options.sampling.logit_bias = biases.iter().copied().collect();
        ask(cluster.node(), cluster.model, options)
    };
    let plain = biased(&[]).await.expect("the swarm answers");
    let banned = biased(&[(plain.tokens[0], -100.0)]).await.expect("the swarm answers");
    assert!(!banned.tokens.contains(&plain.tokens[0]), "{:?}", banned.tokens);
    let forced = biased(&[(1234, 100.0)]).await.expect("the swarm answers");
    assert_eq!(forced.tokens, [1234; 6]);
    let foreign = biased(&[(1 << 20, 1.0)]).await.expect_err("a token outside the vocabulary");
    assert_eq!(foreign.kind(), ErrorKind::InvalidArgument);
    cluster.stop().await;
}

/// Sends a request over HTTP; returns status and body.
async fn post(address: SocketAddr, path: &'static str, body: Value) -> (u16, String) {
    let exchange = move || {
        let body = body.to_string();
        let mut stream = TcpStream::connect(address).expect("the server listens");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("the server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the server answers");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status, body.expect("a body"))
    };
    in_time("an answer over HTTP", tokio::task::spawn_blocking(exchange)).await.expect("the client ends")
}

/// The chunks of a stream.
fn events(body: &str) -> Vec<Value> {
    let lines = body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|line| *line != "[DONE]");
    lines.map(|line| serde_json::from_str(line).expect("an event is JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_without_additional_properties_gets_none() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let mut schema = guest();
    schema.as_object_mut().expect("an object").remove("additionalProperties");
    for seed in 1..=3 {
        let options = GenerateOptions { constraint: Some(Constraint::JsonSchema(schema.clone())), ..drawn(seed, 300) };
        let done = ask(cluster.node(), cluster.model, options).await.expect("the swarm answers");
        let value = serde_json::from_str(&done.text).unwrap_or_else(|cause| panic!("{cause}: {}", done.text));
        assert!(done.finish == FinishReason::Stop && is_guest(&value), "{}", done.text);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_completes_plain_text_with_and_without_streaming() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let config = ServerConfig { listen: vec!["127.0.0.1:0".parse().expect("an address")], ..ServerConfig::default() };
    let server = serve(cluster.node().clone(), config).expect("the server starts");
    let address = server.addresses()[0];
    let own = ask(cluster.node(), cluster.model, greedy(8)).await.expect("the swarm answers");
    let ask = |more: Value| {
        let mut body = json!({"model": cluster.model.to_string(), "prompt": TEXT, "max_tokens": 8, "temperature": 0,
            "exact": true});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        post(address, "/v1/completions", body)
    };
    let (status, body) = ask(json!({"n": 2})).await;
    let whole: Value = serde_json::from_str(&body).expect("the body is JSON");
    assert_eq!((status, &whole["object"]), (200, &json!("text_completion")), "{body}");
    for (choice, index) in whole["choices"].as_array().expect("choices").iter().zip(0..) {
        assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &json!(own.text)));
        assert_eq!(choice["finish_reason"], "length");
    }
    assert_eq!(whole["usage"]["completion_tokens"], 16);
    let (status, body) = ask(json!({"stream": true, "stream_options": {"include_usage": true}})).await;
    let events = events(&body);
    let text = |event: &Value| event["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
    assert_eq!((status, events.iter().map(text).collect::<String>()), (200, own.text.clone()));
    assert!(events.iter().all(|event| event["object"] == "text_completion"), "{body}");
    assert_eq!(events.last().map(|last| &last["usage"]["completion_tokens"]), Some(&json!(8)));
    let word: String = own.text.chars().skip(4).take(3).collect();
    let (_, body) = ask(json!({"stop": word})).await;
    let stopped: Value = serde_json::from_str(&body).expect("the body is JSON");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop", "{body}");
    assert!(!stopped["choices"][0]["text"].as_str().expect("text").contains(&word), "{body}");
    server.shutdown(Duration::from_secs(5)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_errors_name_the_field_and_overlong_prompts_their_code() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 1).await;
    let config = ServerConfig { listen: vec!["127.0.0.1:0".parse().expect("an address")], ..ServerConfig::default() };
    let server = serve(cluster.node().clone(), config).expect("the server starts");
    let (address, model) = (server.addresses()[0], cluster.model.to_string());
    // The second exceeds the maximum text length, as do the many together.
    let (long, huge) = ("One word more. ".repeat(3000), "One word more. ".repeat(350_000));
    let user = |content: &str| json!({"role": "user", "content": content});
    let many: Vec<Value> = (0..350).map(|_| user(&"One word more. ".repeat(1000))).collect();
    let (invalid, exceeded) = ("invalid_argument", "context_length_exceeded");
    let table = [
        ("/v1/completions", json!({"prompt": ""}), "prompt", invalid),
        ("/v1/completions", json!({"prompt": long}), "prompt", exceeded),
        ("/v1/completions", json!({"prompt": huge}), "prompt", exceeded),
        ("/v1/chat/completions", json!({"messages": [user(&long)]}), "messages", exceeded),
        ("/v1/chat/completions", json!({"messages": [user(&huge)]}), "messages", exceeded),
        ("/v1/chat/completions", json!({"messages": many}), "messages", exceeded),
        (
            "/v1/chat/completions",
            json!({"messages": [user("x")], "chat_template_kwargs": {"tools": []}}),
            "chat_template_kwargs.tools",
            invalid,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [user("x")], "draft_model": "no-such-model"}),
            "draft_model",
            "model_not_found",
        ),
        ("/v1/embeddings", json!({"input": ""}), "input", invalid),
        ("/v1/embeddings", json!({"input": [TEXT, long]}), "input[1]", exceeded),
    ];
    for (uri, mut body, param, code) in table {
        body["model"] = json!(model);
        let (_, answer) = post(address, uri, body).await;
        let answer: Value = serde_json::from_str(&answer).expect("the body is JSON");
        assert_eq!(
            (&answer["error"]["param"], &answer["error"]["code"]),
            (&json!(param), &json!(code)),
            "{uri}: {answer}"
        );
    }
    server.shutdown(Duration::from_secs(5)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_uses_the_template_of_request_or_node() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 1).await;
    let node = cluster.node();
    let plain = ask(node, cluster.model, greedy(6)).await.expect("the swarm answers");
    let request = |template: &str| ChatRequest {
        model: cluster.model.to_string(),
        messages: vec![ChatMessage { role: "user".to_owned(), content: "who had".to_owned() }],
        options: greedy(6),
        inputs: TemplateInputs {
            kwargs: [("last".to_owned(), json!("come:"))].into_iter().collect(),
            ..Default::default()
        },
        chat_template: Some(template.to_owned()),
    };
    let template = "The lighthouse keeper wrote down {{ messages[0].content }} {{ last }}";
    let answered = async { node.chat(request(template)).await?.finish().await };
    let own = in_time("an answer", answered).await.expect("the swarm answers");
    assert_eq!((own.prompt_tokens, own.text), (plain.prompt_tokens, plain.text));
    let refused = node.chat(request("{% if %}")).await.map(|_| ()).expect_err("it is none");
    assert_eq!(refused.kind(), ErrorKind::BadTemplate);
    cluster.stop().await;

    let dir = tempfile::TempDir::new().expect("a directory");
    let start =
        |template: &str| Node::builder().data_dir(dir.path()).preset(Preset::Offline).chat_template(template).start();
    let refused = start("{% if %}").await.map(|_| ()).expect_err("it is none");
    assert_eq!(refused.kind(), ErrorKind::InvalidConfig);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_returns_several_constrained_choices_with_log_probabilities() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let config = ServerConfig { listen: vec!["127.0.0.1:0".parse().expect("an address")], ..ServerConfig::default() };
    let server = serve(cluster.node().clone(), config).expect("the server starts");
    let address = server.addresses()[0];
    let ask = |more: Value| {
        let mut body = json!({
            "model": cluster.model.to_string(), "messages": [{"role": "user", "content": TEXT}], "n": 3, "seed": 5,
            "temperature": 1, "max_tokens": 200, "logprobs": true, "top_logprobs": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "guest", "schema": guest(), "strict": true}},
        });
        let fields = more.as_object().expect("fields").clone();
        body.as_object_mut().expect("an object").extend(fields);
        post(address, "/v1/chat/completions", body)
    };
    let (status, body) = ask(json!({})).await;
    assert_eq!(status, 200, "{body}");
    let whole: Value = serde_json::from_str(&body).expect("the body is JSON");
    let choices = whole["choices"].as_array().expect("choices");
    let text = |choice: &Value| choice["message"]["content"].as_str().expect("text").to_owned();
    let texts: Vec<String> = choices.iter().map(text).collect();
    let mut tokens = 0;
    for (choice, index) in choices.iter().zip(0..) {
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(index), &json!("stop")));
        assert!(is_guest(&serde_json::from_str(&text(choice)).expect("JSON")), "{choice}");
        let told = choice["logprobs"]["content"].as_array().expect("log-probabilities");
        // Only one token is admitted by the schema.
        let likely = |token: &Value| token["top_logprobs"].as_array().map_or(0, Vec::len);
        assert!(told.iter().all(|token| (1..=2).contains(&likely(token))));
        let said: String = told.iter().map(|token| token["token"].as_str().expect("text")).collect();
        assert_eq!(said, text(choice));
        tokens += told.len() as u64;
    }
    assert_eq!(choices.len(), 3);
    assert_eq!(whole["usage"]["completion_tokens"], tokens);
    let prompt = whole["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(whole["usage"]["total_tokens"], prompt + tokens);

    let (status, body) = ask(json!({"stream": true, "stream_options": {"include_usage": true}})).await;
    assert_eq!(status, 200, "{body}");
    let events = events(&body);
    let (mut streamed, mut told) = (vec![String::new(); 3], 0);
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        let index = choice["index"].as_u64().expect("an index") as usize;
        streamed[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        told += choice["logprobs"]["content"].as_array().map_or(0, Vec::len) as u64;
    }
    assert_eq!(streamed, texts, "equal seeds yield equal answers");
    assert_eq!(told, tokens);
    assert_eq!(events.last().map(|last| &last["usage"]["completion_tokens"]), Some(&json!(tokens)));
    assert!(body.trim_end().ends_with("data: [DONE]") || body.contains("data: [DONE]"));

    let refused = json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}});
    let (status, body) = ask(refused).await;
    assert_eq!(status, 400, "{body}");
    let (status, _) = ask(json!({"response_format": {"type": "json_object"}, "n": 1, "max_tokens": 2})).await;
    assert_eq!(status, 200, "the server continues");
    server.shutdown(Duration::from_secs(5)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_embeddings_match_the_openai_format() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let config = ServerConfig { listen: vec!["127.0.0.1:0".parse().expect("an address")], ..ServerConfig::default() };
    let server = serve(cluster.node().clone(), config).expect("the server starts");
    let ask = |more: Value| {
        let mut body = json!({"model": cluster.model.to_string(), "input": [TEXT, "Another text."]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        post(server.addresses()[0], "/v1/embeddings", body)
    };
    let (status, body) = ask(json!({})).await;
    assert_eq!(status, 200, "{body}");
    let list: Value = serde_json::from_str(&body).expect("the body is JSON");
    let data = list["data"].as_array().expect("data");
    let shape = |item: &Value| (item["object"] == "embedding", item["embedding"].as_array().map(Vec::len));
    assert_eq!((data.len(), shape(&data[0]), shape(&data[1])), (2, (true, Some(576)), (true, Some(576))));
    assert_eq!((&list["object"], &data[1]["index"]), (&json!("list"), &json!(1)));
    assert!(list["usage"]["prompt_tokens"].as_u64() > Some(10) && list["usage"]["total_tokens"].is_u64(), "{list}");
    let (status, body) = ask(json!({"encoding_format": "base64", "pooling": "last", "input": "One."})).await;
    let list: Value = serde_json::from_str(&body).expect("the body is JSON");
    let text = list["data"][0]["embedding"].as_str().expect("base64");
    // 576 floats of 4 bytes; base64 encodes 3 bytes as 4 characters.
    assert_eq!((status, text.len()), (200, 576 * 4 / 3 * 4));
    for (more, status, field) in [
        (json!({"dimensions": 64}), 400, "dimensions"),
        (json!({"input": []}), 400, "input"),
        (json!({"pooling": "sum"}), 400, "pooling"),
        (json!({"model": "no-such-model"}), 404, "model"),
    ] {
        let (given, body) = ask(more).await;
        assert!(given == status && body.contains(field), "{given}: {body}");
    }
    cluster.stop().await;
}
