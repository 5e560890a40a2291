//! The numbered error kinds, shared by all language bindings and the HTTP server.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $http:literal;)*) => {
        /// The kind of an error, with a stable code. New kinds are appended; codes are never reused.
        ///
        /// 1xx: invalid calls. 2xx: models. 3xx: the swarm. 4xx: the ledger. 5xx: the machine (disk, memory, ports).
        /// 9xx: defects of this library.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum ErrorKind { $($(#[$doc])* $name = $code,)* }

        impl ErrorKind {
            /// Every kind, in declaration order.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)*];

            /// The name, as written in Rust.
            pub fn name(self) -> &'static str {
                match self { $(ErrorKind::$name => stringify!($name),)* }
            }

            /// The HTTP status of a response with this kind.
            pub fn http_status(self) -> u16 {
                match self { $(ErrorKind::$name => $http,)* }
            }

            /// The kind with this code; `Internal` for an unknown code.
            pub fn from_code(code: u16) -> ErrorKind {
                match code { $($code => ErrorKind::$name,)* _ => ErrorKind::Internal }
            }
        }
    };
}

kinds! {
    /// An argument is invalid.
    InvalidArgument = 100, 400;
    /// A configuration file, variable or flag is invalid.
    InvalidConfig = 101, 500;
    /// The node has been shut down.
    Closed = 102, 503;
    /// Prompt and answer together exceed the context length.
    ContextOverflow = 103, 400;
    /// The caller cancelled.
    Cancelled = 104, 499;
    /// The process was forked after the node had started.
    Forked = 105, 500;
    /// This build or configuration does not support the call.
    Unsupported = 106, 501;
    /// No model with this name or id is known.
    ModelNotFound = 200, 404;
    /// The file is not an accepted GGUF file.
    BadGguf = 201, 422;
    /// The architecture is not on the certified list.
    UnsupportedArchitecture = 202, 422;
    /// A required shard is not stored on this node.
    ShardMissing = 203, 503;
    /// The digest of received or stored bytes is wrong.
    ShardCorrupt = 204, 502;
    /// A manifest is malformed or has the wrong id.
    BadManifest = 205, 422;
    /// The tokenizer of the model cannot be built or used.
    BadTokenizer = 206, 422;
    /// The chat template of the model cannot be rendered.
    BadTemplate = 207, 422;
    /// A web source is unreachable or refuses the request.
    SourceUnreachable = 208, 502;
    /// A web source sent an unexpected response.
    BadSource = 209, 502;
    /// A file on the web changed during its download.
    SourceChanged = 210, 409;
    /// The alias belongs to another model on this node.
    AliasTaken = 211, 409;
    /// No peer with this id is known.
    PeerNotFound = 300, 404;
    /// A peer is unreachable.
    PeerUnreachable = 301, 503;
    /// The known peers cannot serve the model together.
    NoPlan = 302, 503;
    /// A peer disconnected during its work.
    PeerLost = 303, 502;
    /// A peer refused the work.
    Refused = 304, 503;
    /// A peer violated the protocol.
    BadFrame = 305, 502;
    /// A deadline passed.
    Timeout = 306, 504;
    /// The work exceeds the configured limits.
    Overloaded = 307, 429;
    /// The debt limit is reached.
    NoCredit = 400, 402;
    /// Two records of one account contradict each other.
    LedgerConflict = 401, 409;
    /// Reading or writing failed.
    Io = 500, 500;
    /// The disk is full.
    DiskFull = 501, 507;
    /// Another node uses the data directory.
    DataDirBusy = 502, 409;
    /// An address is in use, or may not be bound.
    PortInUse = 503, 500;
    /// The store cannot be opened.
    StoreDamaged = 504, 500;
    /// The memory budget is exceeded.
    OutOfMemory = 505, 503;
    /// The disk budget for shards is exceeded.
    DiskBudget = 506, 507;
    /// An engine failed.
    EngineFailed = 901, 500;
    /// A defect of this library.
    Internal = 900, 500;
}

impl ErrorKind {
    /// The number that C, Python and the wire use.
    pub fn code(self) -> u16 {
        self as u16
    }
}

/// An error as the API boundaries (wire, C, Python, HTTP) carry it: its kind and a message with cause, place and remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    code: u16,
    message: String,
    /// Not sent to peers: fields belong to the caller's own request.
    #[serde(skip)]
    field: Option<String>,
}

impl Fault {
    /// Maximum length of the message in bytes: a peer or a file name cannot make an error large.
    pub const MAX_MESSAGE: usize = 1024;

    /// A fault of this kind; the message is truncated to [`Fault::MAX_MESSAGE`].
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        let mut message = message.to_string();
        message.truncate(message.floor_char_boundary(Self::MAX_MESSAGE));
        Self { code: kind.code(), message, field: None }
    }

    /// Sets the field of the request. The message is prefixed with the field unless it already is.
    #[must_use]
    pub fn about(self, field: impl Into<String>) -> Self {
        let field = field.into();
        let prefix = prefix(&field);
        let named = match self.message.starts_with(&prefix) {
            true => self,
            false => Self::new(self.kind(), format_args!("{prefix}{}", self.message)),
        };
        named.of_field(field)
    }

    /// Sets the field of the request without a prefix to the message.
    #[must_use]
    pub fn of_field(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    /// Renames the field, in the message too: each API boundary has its own names.
    #[must_use]
    pub fn renamed(self, field: &str) -> Self {
        let rest = self.field.as_deref().and_then(|old| self.message.strip_prefix(&prefix(old)));
        match rest {
            Some(rest) => Self::new(self.kind(), format_args!("{}{rest}", prefix(field))).of_field(field),
            None => self.of_field(field),
        }
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::from_code(self.code)
    }

    /// The invalid field of the request by its name in C and Python, with its path in lists and objects: `max_tokens`,
    /// `inputs[2]`, `chat_template_kwargs.tools`. `None` without such a field, and in faults from peers.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// The prefix of a message about a field.
fn prefix(field: &str) -> String {
    format!("`{field}`: ")
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_round_trip() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(kind.code()), *kind, "{}", kind.name());
        }
    }

    #[test]
    fn a_fault_names_its_field_once_also_when_renamed() {
        let fault = Fault::new(ErrorKind::InvalidArgument, "is 3").about("draft").about("draft");
        assert_eq!((fault.field(), fault.message()), (Some("draft"), "`draft`: is 3"));
        let renamed = fault.clone().renamed("draft_model");
        assert_eq!((renamed.field(), renamed.message()), (Some("draft_model"), "`draft_model`: is 3"));
        let own_words = Fault::new(ErrorKind::ModelNotFound, "no `m`").of_field("model").renamed("name");
        assert_eq!((own_words.field(), own_words.message()), (Some("name"), "no `m`"));
        let received: Fault = serde_json::from_value(serde_json::to_value(&fault).unwrap()).unwrap();
        assert_eq!(received.field(), None, "the field is not sent to peers");
        let long = Fault::new(ErrorKind::Io, "e".repeat(Fault::MAX_MESSAGE)).about("x");
        assert!(long.message().len() <= Fault::MAX_MESSAGE);
    }

    #[test]
    fn messages_are_truncated_at_a_character_boundary() {
        let fault = Fault::new(ErrorKind::Io, "é".repeat(Fault::MAX_MESSAGE));
        assert!(fault.message().len() <= Fault::MAX_MESSAGE);
    }
}
