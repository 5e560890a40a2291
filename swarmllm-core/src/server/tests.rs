//! The server without a model: its refusals, and its connections.

mod malformed;

use std::io::{Read, Write};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use super::openai::choices::NodeRequest;
use super::openai::completions::TextBody;
use super::openai::request::CheckedRequest;
use super::openai::types::ChatBody;
use super::reject::Reject;
use super::state::{JsonBody, Limits};
use super::*;
use crate::base::json;
use crate::node::{ChatRequest, Constraint};

const KEY: &str = "0123456789abcdef";
const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn limits() -> Limits {
    Limits { max_body: 16 << 10, body_timeout: Duration::from_secs(30) }
}

/// Access checks and parsing of the server, with handlers that need no node.
fn app(config: &ServerConfig, bound: &str) -> Router {
    let policy = auth::Policy::new(config, &[bound.parse().unwrap()]);
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/panic",
            get(|| async {
                if limits().max_body > 0 {
                    panic!("a handler's defect")
                }
            }),
        )
        .route(CHAT, post(|JsonBody(body): JsonBody<ChatBody>| async move { echo(body.check()) }))
        .route(TEXT, post(|JsonBody(body): JsonBody<TextBody>| async move { echo(body.check()) }))
        .with_state(limits());
    openai::guarded(routes, Arc::new(policy))
}

fn echo(checked: Result<CheckedRequest, Reject>) -> axum::response::Response {
    match checked {
        Ok(ask) => Json(json!({"model": ask.request.model(), "stream": ask.stream})).into_response(),
        Err(reject) => reject.into_response(),
    }
}

/// The node's request of a chat's body.
fn chat_request(body: &str) -> ChatRequest {
    let body: ChatBody = json::parse(body.as_bytes()).unwrap();
    match body.check().unwrap().request {
        NodeRequest::Chat(request) => request,
        NodeRequest::Text(_) => panic!("a chat asks for an answer"),
    }
}

fn post_chat(body: impl Into<Body>) -> Request<Body> {
    post_to(CHAT, body)
}

fn post_to(uri: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::builder().method(Method::POST).uri(uri).header(header::HOST, "localhost:8800");
    request.header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
}

async fn answer(app: Router, request: Request<Body>) -> (StatusCode, Value) {
    let response = app.oneshot(request).await.unwrap();
    assert!(response.headers().contains_key("x-request-id"));
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn ask(request: Request<Body>) -> (StatusCode, Value) {
    answer(app(&ServerConfig::default(), "127.0.0.1:8800"), request).await
}

fn with(field: &str, value: Value) -> String {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body[field] = value;
    body.to_string()
}

#[tokio::test]
async fn every_supported_field_is_accepted() {
    let body = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true}, "n": 3, "temperature": 0,
        "top_p": 0.5, "top_k": 40, "min_p": 0.1, "max_completion_tokens": 7, "stop": ["a", "b"], "seed": -1,
        "presence_penalty": -2, "frequency_penalty": 2, "repeat_penalty": 1.1, "tools": null, "typical_p": 0.9,
        "logit_bias": {"50256": -100, "7": 1.5}, "logprobs": true, "top_logprobs": 20,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": false, "schema": {"type": "null"}}},
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null},
        ],
    });
    let ask: ChatBody = json::parse(body.to_string().as_bytes()).unwrap();
    let ask = ask.check().unwrap();
    assert!(ask.stream && ask.include_usage && ask.n == 3);
    let NodeRequest::Chat(request) = ask.request else { panic!("a chat asks for an answer") };
    let messages: Vec<_> = request.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
    assert_eq!(messages, [("system", "be brief"), ("user", "a\nb"), ("assistant", "c")]);
    let options = request.options;
    assert_eq!((options.max_tokens, options.stop), (Some(7), vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!((options.sampling.temperature, options.sampling.top_k), (0.0, 40));
    assert_eq!(options.sampling.seed, Some(u64::MAX));
    assert_eq!((options.sampling.typical_p, options.logprobs), (0.9, Some(20)));
    assert_eq!(options.sampling.logit_bias, [(7, 1.5), (50256, -100.0)].into());
    assert_eq!(options.constraint, Some(Constraint::JsonSchema(json!({"type": "null"}))));
}

#[test]
fn every_response_format_is_understood() {
    let table = [
        (json!({"type": "text"}), None),
        (json!({"type": "json_object"}), Some(Constraint::JsonObject)),
        (
            json!({"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: A"}}),
            Some(Constraint::Lark("start: A".to_owned())),
        ),
        (
            json!({"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}),
            Some(Constraint::Regex("a+".to_owned())),
        ),
    ];
    for (format, constraint) in table {
        let request = chat_request(&with("response_format", format.clone()));
        assert_eq!(request.options.constraint, constraint, "{format}");
    }
}

#[tokio::test]
async fn unsupported_fields_are_refused_by_name() {
    let table = [
        ("frobnicate", json!(1), "frobnicate"),
        ("tools", json!({}), "tools"),
        ("tools", json!([{"type": "custom", "custom": {"name": "f"}}]), "tools[0]"),
        ("tools", json!([{"type": "function", "function": {"name": ""}}]), "tools[0]"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}}), "tool_choice"),
        ("reasoning_effort", json!("enormous"), "reasoning_effort"),
        ("documents", json!("text"), "documents"),
        ("chat_template_kwargs", json!([]), "chat_template_kwargs"),
        ("chat_template", json!("x"), "chat_template"),
        ("logprobs", json!("yes"), "logprobs"),
        ("top_logprobs", json!(3), "top_logprobs"),
        ("logit_bias", json!({"7": 101}), "logit_bias.7"),
        ("logit_bias", json!({"the": 1}), "logit_bias.the"),
        (
            "logit_bias",
            json!((0..1025).map(|token| (token.to_string(), json!(1))).collect::<Map<_, _>>()),
            "logit_bias",
        ),
        ("typical_p", json!(2), "typical_p"),
        ("user", json!(7), "user"),
        ("metadata", json!("text"), "metadata"),
        ("store", json!(true), "store"),
        ("service_tier", json!("flex"), "service_tier"),
        ("n", json!(0), "n"),
        ("n", json!(9), "n"),
        ("n", json!(-1), "n"),
        ("temperature", json!(-0.1), "temperature"),
        ("temperature", json!(2.5), "temperature"),
        ("temperature", json!("hot"), "temperature"),
        ("top_p", json!(1.5), "top_p"),
        ("min_p", json!(-1), "min_p"),
        ("top_k", json!(-1), "top_k"),
        ("repeat_penalty", json!(0), "repeat_penalty"),
        ("presence_penalty", json!(3), "presence_penalty"),
        ("frequency_penalty", json!(-3), "frequency_penalty"),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_completion_tokens", json!(0), "max_completion_tokens"),
        ("stop", json!(vec!["x"; 17]), "stop"),
        ("stop", json!(""), "stop"),
        ("stop", json!([1]), "stop[0]"),
        ("seed", json!(1.5), "seed"),
        ("stream_options", json!({"include_usage": true}), "stream_options"),
        ("stream_options", json!({"other": true}), "stream_options.other"),
        ("model", json!(""), "model"),
        ("messages", json!([]), "messages"),
        ("messages", json!([{"role": "pirate", "content": "x"}]), "messages[0].role"),
        ("messages", json!([{"role": "user", "content": null}]), "messages[0].content"),
        ("messages", json!([{"role": "system", "content": "x"}, {"role": "user"}]), "messages[1].content"),
        ("messages", json!([{"role": "user", "content": "x", "name": 1}]), "messages[0].name"),
        ("messages", json!([{"role": "user", "content": [{"type": "image"}]}]), "messages[0].content[0].type"),
    ];
    for (field, value, param) in table {
        let (status, body) = ask(post_chat(with(field, value.clone()))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{field}: {value}");
        assert_eq!(body["error"]["param"], param, "{field}: {value}: {body}");
        assert_eq!(body["error"]["code"], "invalid_argument");
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
}

#[test]
fn default_fields_of_clients_are_accepted_without_effect() {
    let plain = chat_request(&with("model", json!("m")));
    let table = [
        ("user", json!("me")),
        ("metadata", json!({"session": "7"})),
        ("store", json!(false)),
        ("service_tier", json!("auto")),
        ("service_tier", json!("default")),
        ("safety_identifier", json!("x")),
        ("prompt_cache_key", json!("x")),
        ("tools", json!([])),
        ("parallel_tool_calls", json!(true)),
        ("messages", json!([{"role": "user", "content": "hi", "name": "ann"}])),
    ];
    for (field, value) in table {
        let request = chat_request(&with(field, value.clone()));
        assert_eq!((&request.messages, &request.options), (&plain.messages, &plain.options), "{field}: {value}");
    }
    let said = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": null}]);
    assert_eq!(chat_request(&with("messages", said)).messages[1].content, "");
    let mut tools: Value = serde_json::from_str(&with("parallel_tool_calls", json!(true))).unwrap();
    tools["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    let refused: ChatBody = json::parse(tools.to_string().as_bytes()).unwrap();
    assert_eq!(refused.check().unwrap_err().param.as_deref(), Some("parallel_tool_calls"));
}

#[test]
fn inputs_of_the_template_reach_the_node() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let mut body: Value = serde_json::from_str(&with("tools", tools.clone())).unwrap();
    body["documents"] = json!([{"text": "d"}]);
    body["chat_template_kwargs"] = json!({"enable_thinking": false});
    body["reasoning_effort"] = json!("high");
    body["tool_choice"] = json!("auto");
    let inputs = chat_request(&body.to_string()).inputs;
    assert_eq!((Value::Array(inputs.tools), inputs.documents.len()), (tools, 1));
    assert_eq!(Value::Object(inputs.kwargs), json!({"enable_thinking": false, "reasoning_effort": "high"}));
    body["tool_choice"] = json!("none");
    assert!(chat_request(&body.to_string()).inputs.tools.is_empty());
    assert!(chat_request(&with("tools", json!([]))).inputs.tools.is_empty(), "official clients send it");
    body["chat_template_kwargs"] = json!({"reasoning_effort": "low"});
    let twice: ChatBody = json::parse(body.to_string().as_bytes()).unwrap();
    assert_eq!(twice.check().unwrap_err().param.as_deref(), Some("reasoning_effort"));
}

#[tokio::test]
async fn text_requests_refuse_unsupported_fields_by_name() {
    let with = |field: &str, value: Value| {
        let mut body = json!({"model": "m", "prompt": "Once"});
        body[field] = value;
        body.to_string()
    };
    for (field, value) in [
        ("n", json!(2)),
        ("n", json!(2.0)),
        ("prompt", json!(["Once"])),
        ("echo", json!(false)),
        ("logprobs", json!(null)),
        ("best_of", json!(1)),
        ("best_of", json!(null)),
    ] {
        let (status, answer) = ask(post_to(TEXT, with(field, value))).await;
        assert_eq!((status, &answer["model"]), (StatusCode::OK, &json!("m")), "{field}: {answer}");
    }
    let as_many = json!({"model": "m", "prompt": "Once", "n": 3, "best_of": 3}).to_string();
    assert_eq!(ask(post_to(TEXT, as_many)).await.0, StatusCode::OK);
    let table = [
        ("prompt", json!(["a", "b"]), "prompt"),
        ("prompt", json!([]), "prompt"),
        ("prompt", json!([1, 2]), "prompt[0]"),
        ("echo", json!(true), "echo"),
        ("logprobs", json!(1), "logprobs"),
        ("best_of", json!(2), "best_of"),
        ("suffix", json!("x"), "suffix"),
        ("messages", json!([]), "messages"),
        ("max_tokens", json!(0), "max_tokens"),
        ("temperature", json!(3), "temperature"),
        ("n", json!(9), "n"),
        ("stop", json!([""]), "stop"),
    ];
    for (field, value, param) in table {
        let (status, answer) = ask(post_to(TEXT, with(field, value.clone()))).await;
        assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{field}: {value}");
    }
}

#[tokio::test]
async fn an_invalid_response_format_is_refused_with_its_field() {
    let grammar =
        |definition: String| json!({"type": "grammar", "grammar": {"syntax": "lark", "definition": definition}});
    let formats = [
        json!({"type": "yaml"}),
        json!({"type": "json_object", "schema": {}}),
        json!({"type": "json_schema", "json_schema": {"name": "x"}}),
        json!({"type": "grammar", "grammar": {"syntax": "ebnf", "definition": "x"}}),
        grammar(":".repeat(2000)),
        json!("json_object"),
    ];
    for format in formats {
        let (status, body) = ask(post_chat(with("response_format", format.clone()))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{format}");
        let param = body["error"]["param"].as_str().unwrap_or_default();
        assert!(param.starts_with("response_format"), "{format}: {body}");
    }
}

#[tokio::test]
async fn infinite_numbers_and_duplicate_fields_are_refused() {
    let twice = r#"{"model": "m", "model": "w", "messages": []}"#;
    let huge = r#"{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}"#;
    for body in [twice, huge] {
        assert_eq!(ask(post_chat(body)).await.0, StatusCode::BAD_REQUEST, "{body}");
    }
}

#[tokio::test]
async fn malformed_json_is_refused() {
    let deep = format!("{{\"model\": {}", "[".repeat(2000));
    for body in ["", "{", "{\"model\": \"m\"} x", "\u{0}", deep.as_str()] {
        let (status, body) = ask(post_chat(body.to_owned())).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    }
    let (_, body) = ask(post_chat("{")).await;
    assert_eq!(body["error"]["code"], "malformed_json");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let (status, body) = ask(post_chat(with("model", json!("m".repeat(17 << 10))))).await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("body_too_large")));
}

#[tokio::test]
async fn a_foreign_head_is_refused() {
    let table = [
        (header::HOST, "evil.example", StatusCode::FORBIDDEN, "foreign_host"),
        (header::HOST, "localhost.evil.example:8800", StatusCode::FORBIDDEN, "foreign_host"),
        (header::HOST, "", StatusCode::FORBIDDEN, "foreign_host"),
        (header::HOST, "192.168.0.9", StatusCode::FORBIDDEN, "foreign_host"),
        (header::ORIGIN, "http://evil.example", StatusCode::FORBIDDEN, "foreign_origin"),
        (header::ORIGIN, "null", StatusCode::FORBIDDEN, "foreign_origin"),
        (header::ORIGIN, "http://localhost:3000", StatusCode::FORBIDDEN, "foreign_origin"),
        (header::CONTENT_TYPE, "text/plain", StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
        (header::CONTENT_TYPE, "application/jsonp", StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
        (header::CONTENT_ENCODING, "gzip", StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
    ];
    for (name, value, status, code) in table {
        let mut request = post_chat(with("n", json!(1)));
        request.headers_mut().insert(&name, value.parse().unwrap());
        let (answered, body) = ask(request).await;
        assert_eq!((answered, &body["error"]["code"]), (status, &json!(code)), "{name}: {value}");
    }
    let mut twice = post_chat(with("n", json!(1)));
    twice.headers_mut().append(header::HOST, "evil.example".parse().unwrap());
    assert_eq!(ask(twice).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn own_hosts_and_origins_are_served() {
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:8800", "[::1]:8800", "box.local:8800"] {
        let mut request = post_chat(with("n", json!(1)));
        request.headers_mut().insert(header::HOST, host.parse().unwrap());
        request.headers_mut().insert(header::ORIGIN, format!("http://{host}").parse().unwrap());
        let config = ServerConfig { allowed_hosts: vec!["Box.local".to_owned()], ..ServerConfig::default() };
        let (status, body) = answer(app(&config, "127.0.0.1:8800"), request).await;
        assert_eq!(status, StatusCode::OK, "{host}: {body}");
    }
}

#[tokio::test]
async fn on_all_interfaces_any_literal_address_is_allowed() {
    let config = ServerConfig { api_key: None, ..ServerConfig::default() };
    for (host, status) in [("192.168.0.9:8800", StatusCode::OK), ("evil.example", StatusCode::FORBIDDEN)] {
        let mut request = post_chat(with("n", json!(1)));
        request.headers_mut().insert(header::HOST, host.parse().unwrap());
        assert_eq!(answer(app(&config, "0.0.0.0:8800"), request).await.0, status, "{host}");
    }
}

#[tokio::test]
async fn an_api_key_is_required_except_on_healthz() {
    let config = ServerConfig { api_key: Some(KEY.to_owned()), ..ServerConfig::default() };
    let cases = [
        (None, StatusCode::UNAUTHORIZED),
        (Some("Bearer wrong".to_owned()), StatusCode::UNAUTHORIZED),
        (Some(format!("Basic {KEY}")), StatusCode::UNAUTHORIZED),
        (Some(format!("Bearer {KEY}")), StatusCode::OK),
    ];
    for (given, status) in cases {
        let mut request = post_chat(with("n", json!(1)));
        if let Some(given) = &given {
            request.headers_mut().insert(header::AUTHORIZATION, given.parse().unwrap());
        }
        assert_eq!(answer(app(&config, "127.0.0.1:8800"), request).await.0, status, "{given:?}");
    }
    let health = Request::get("/healthz").header(header::HOST, "localhost").body(Body::empty()).unwrap();
    assert_eq!(answer(app(&config, "127.0.0.1:8800"), health).await.0, StatusCode::OK);
}

#[tokio::test]
async fn unknown_routes_methods_and_panics_have_openais_format() {
    let at = |method, uri| {
        let request = Request::builder().method(method).uri(uri).header(header::HOST, "localhost");
        request.body(Body::empty()).unwrap()
    };
    let table = [
        (Method::GET, "/nowhere", StatusCode::NOT_FOUND, "unknown_route"),
        (Method::GET, CHAT, StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (Method::GET, "/panic", StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    ];
    for (method, uri, status, code) in table {
        let (answered, body) = ask(at(method, uri)).await;
        assert_eq!((answered, &body["error"]["code"]), (status, &json!(code)), "{uri}");
    }
}

#[test]
fn a_public_address_needs_a_strong_key() {
    let config = |listen: &str, key: Option<&str>| ServerConfig {
        listen: vec![listen.parse().unwrap()],
        api_key: key.map(str::to_owned),
        ..ServerConfig::default()
    };
    assert!(matches!(check(&config("0.0.0.0:0", None)), Err(ServeError::KeyNeeded { .. })));
    assert!(matches!(check(&config("[::]:0", None)), Err(ServeError::KeyNeeded { .. })));
    assert!(matches!(check(&config("127.0.0.1:0", Some("short"))), Err(ServeError::WeakKey)));
    assert!(matches!(check(&config("127.0.0.1:0", Some("sixteen bytes or more"))), Err(ServeError::WeakKey)));
    assert!(check(&config("0.0.0.0:0", Some(KEY))).is_ok());
    assert!(check(&config("[::1]:0", None)).is_ok());
    assert!(matches!(
        check(&ServerConfig { listen: Vec::new(), ..ServerConfig::default() }),
        Err(ServeError::NoAddress)
    ));
}

/// A server of `app` on a free port, and its address.
fn served(app: Router, change: impl FnOnce(&mut driver::Driver)) -> (Server, SocketAddr) {
    let (listeners, addresses) = bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let mut driver = driver::Driver {
        app,
        slots: Arc::new(Semaphore::new(4)),
        header_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(60),
        stop: CancellationToken::new(),
        abort: CancellationToken::new(),
        tasks: TaskTracker::new(),
    };
    change(&mut driver);
    let address = addresses[0];
    (Server::start(driver, listeners, addresses), address)
}

/// Sends `head` and reads until the server closes.
async fn raw(address: SocketAddr, head: &'static str) -> String {
    let exchange = move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    };
    tokio::task::spawn_blocking(exchange).await.unwrap()
}

#[tokio::test]
async fn half_a_head_does_not_hold_a_connection() {
    let short = Duration::from_millis(100);
    let (_server, address) = served(Router::new(), |driver| {
        driver.header_timeout = short;
        driver.slots = Arc::new(Semaphore::new(1));
    });
    // Without the timeout, the first would hang, and the others would wait for the only slot.
    for _ in 0..2 {
        raw(address, "GET / HTTP/1.1\r\nHost: local").await;
    }
    let answer = raw(address, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[tokio::test]
async fn a_port_in_use_is_a_typed_error() {
    let (server, address) = served(Router::new(), |_| {});
    let refused = bind(&[address]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PortInUse);
    assert!(refused.to_string().contains(&address.to_string()));
    server.shutdown(Duration::ZERO).await;
    assert!(bind(&[address]).is_ok());
}

/// Reports its drop.
struct Held(tokio::sync::mpsc::Sender<()>);
impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

#[tokio::test]
async fn a_lost_client_drops_its_answer() {
    let (sender, mut dropped) = tokio::sync::mpsc::channel(1);
    let handler = move || async move {
        let _held = Held(sender);
        std::future::pending::<()>().await;
    };
    let (_server, address) = served(Router::new().route("/", get(handler)), |_| {});
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), dropped.recv()).await.is_err());
    drop(stream);
    assert_eq!(dropped.recv().await, Some(()));
}

#[tokio::test]
async fn a_client_that_reads_nothing_loses_its_connection() {
    let (sender, mut dropped) = tokio::sync::mpsc::channel(1);
    let handler = move || async move {
        let endless = futures::stream::unfold(Held(sender), |held| async move {
            Some((Ok::<_, std::convert::Infallible>(vec![0_u8; 64 << 10]), held))
        });
        Body::from_stream(endless)
    };
    let (_server, address) = served(Router::new().route("/", get(handler)), |driver| {
        driver.write_timeout = Duration::from_millis(100);
    });
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    // The socket's buffers take some of the body; then no write makes progress.
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), dropped.recv()).await, Ok(Some(())));
}

#[tokio::test]
async fn shutdown_drains_answers_until_the_deadline() {
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        "slow"
    };
    let (server, address) =
        served(Router::new().route("/slow", get(slow)).route("/never", get(std::future::pending::<&str>)), |_| {});
    let slow = tokio::spawn(raw(address, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    let never = tokio::spawn(raw(address, "GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.shutdown(Duration::from_secs(1)).await;
    assert!(slow.await.unwrap().ends_with("slow"));
    assert_eq!(never.await.unwrap(), "");
    server.shutdown(Duration::from_secs(1)).await;
}
