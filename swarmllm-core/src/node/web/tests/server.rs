//! A test server of one file, with scripted faults.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// A received request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Number of earlier requests.
    pub number: usize,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The requested range.
    pub fn range(&self) -> Option<Range<usize>> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1)
    }
}

/// What follows the bytes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The connection closes.
    Close,
    /// Nothing until the client leaves.
    Hang,
    /// Single bytes, slowly.
    Drip,
    /// Endless bytes.
    Pour,
}

/// A response, byte for byte.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub then: Then,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), then: Then::Close }
    }

    /// The requested range, or the whole file.
    pub fn of(file: &[u8], asked: &Asked) -> Self {
        match asked.range() {
            Some(range) => {
                let end = range.end.min(file.len());
                let told = format!("bytes {}-{}/{}", range.start, end - 1, file.len());
                Self::new(206, &file[range.start..end]).with("content-range", told).sized()
            }
            None => Self::new(200, file).sized(),
        }
        .with("etag", "\"one\"")
    }

    /// The whole file, whatever was requested.
    pub fn whole(file: &[u8]) -> Self {
        Self::new(200, file).sized()
    }

    pub fn sized(self) -> Self {
        let len = self.body.len();
        self.with("content-length", len)
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(given, _)| given != name);
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(given, _)| given != name);
        self
    }

    /// Ends after `len` bytes of the body.
    pub fn cut(mut self, len: usize, then: Then) -> Self {
        self.body.truncate(len);
        self.then = then;
        self
    }
}

pub struct Server {
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Connections that the client closed early.
    pub left: Arc<Mutex<usize>>,
    task: AbortHandle,
}

impl Server {
    pub async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (asked, left): (Arc<Mutex<Vec<Asked>>>, Arc<Mutex<usize>>) = Default::default();
        let (seen, gone, answer) = (asked.clone(), left.clone(), Arc::new(answer));
        let serve = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, gone, answer) = (seen.clone(), gone.clone(), answer.clone());
                tokio::spawn(async move {
                    if serve(stream, &seen, &*answer).await.is_err() {
                        *gone.lock().unwrap() += 1;
                    }
                });
            }
        };
        Server { address, asked, left, task: tokio::spawn(serve).abort_handle() }
    }

    /// A correct server of this file.
    pub async fn good(file: Vec<u8>) -> Server {
        Server::start(move |asked| Answer::of(&file, asked)).await
    }

    pub fn url(&self) -> String {
        format!("{}/models/tiny.gguf", self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Requested bytes of the file, from this request on.
    pub fn bytes_asked(&self, from: usize) -> usize {
        self.asked().iter().skip(from).filter_map(Asked::range).map(|range| range.len()).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Asked>>,
    answer: &(dyn Fn(&Asked) -> Answer + Send + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let asked = {
        let mut seen = seen.lock().unwrap();
        let text = String::from_utf8(head).unwrap();
        let mut lines = text.lines();
        let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let asked = Asked { number: seen.len(), path, headers: lines.filter_map(header).collect() };
        seen.push(asked.clone());
        asked
    };
    let Answer { status, headers, body, then } = answer(&asked);
    let mut out = format!("HTTP/1.1 {status} Said\r\nconnection: close\r\n");
    headers.iter().for_each(|(name, value)| out.push_str(&format!("{name}: {value}\r\n")));
    // Status 0 sends no response.
    if status > 0 {
        stream.write_all(format!("{out}\r\n").as_bytes()).await?;
    }
    stream.write_all(&body).await?;
    match then {
        Then::Close => stream.shutdown().await,
        Then::Hang => match stream.read_u8().await {
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        },
        Then::Drip => loop {
            stream.write_all(&[0]).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        },
        Then::Pour => loop {
            stream.write_all(&[0; 65536]).await?;
        },
    }
}
