//! llama.cpp's server as a child process, with a minimal HTTP client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::TIMEOUT;

/// A `llama-server`. Killed when dropped.
pub struct LlamaServer {
    child: Child,
    port: u16,
}

impl LlamaServer {
    /// Starts the server with `slots` slots of `context` positions each, and waits until it is ready.
    pub fn start(binary: &Path, model: &Path, threads: u32, slots: u32, context: u32) -> LlamaServer {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let numbers = [("--port", u32::from(port)), ("-t", threads), ("-np", slots), ("-c", slots * context)];
        let mut command = Command::new(binary);
        command.arg("-m").arg(model).args(["--host", "127.0.0.1", "--no-webui"]);
        for (flag, number) in numbers {
            command.arg(flag).arg(number.to_string());
        }
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = LlamaServer { child: quiet.spawn().expect("llama-server can be started"), port };
        let begun = Instant::now();
        while !server.is_ready() {
            let ended = server.child.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "llama-server ended at once: {ended:?}");
            assert!(begun.elapsed() < TIMEOUT, "llama-server did not become ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn is_ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
    }

    /// Generates `tokens` tokens after `prompt` without the prompt cache, greedily at temperature 0. Returns the arrival
    /// time of each token. Blocks.
    pub fn complete(&self, prompt: &[u32], tokens: u32, temperature: f32, seed: u64) -> Vec<Instant> {
        let top_k = if temperature > 0.0 { 40 } else { 1 };
        let body = serde_json::json!({
            "prompt": prompt, "n_predict": tokens, "stream": true, "temperature": temperature, "top_k": top_k,
            "seed": seed, "cache_prompt": false, "ignore_eos": true,
        });
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("llama-server listens");
        stream.set_nodelay(true).expect("an option of the socket");
        let head = format!(
            "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream
            .write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())
            .expect("llama-server takes the question");
        let mut came = Vec::new();
        for line in BufReader::new(stream).lines() {
            let line = line.expect("llama-server answers");
            let Some(json) = line.strip_prefix("data: ") else { continue };
            let event: serde_json::Value = serde_json::from_str(json).expect("an event is JSON");
            let now = Instant::now();
            let given = event["tokens"].as_array().map_or(1, |tokens| tokens.len());
            if event["stop"] != true {
                came.extend(std::iter::repeat_n(now, given.max(1)));
            }
        }
        came
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
