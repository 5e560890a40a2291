//! The one numbered list of error kinds that every language and the HTTP surface share.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $http:literal;)*) => {
        /// What went wrong, as a number that never changes its meaning. New kinds are appended.
        ///
        /// 1xx: how it was called. 2xx: models. 3xx: the swarm. 4xx: the ledger. 5xx: the ground (disk, memory,
        /// ports). 9xx: our own fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum ErrorKind { $($(#[$doc])* $name = $code,)* }

        impl ErrorKind {
            /// Every kind, in the order of its code.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)*];

            /// The name, as written in Rust.
            pub fn name(self) -> &'static str {
                match self { $(ErrorKind::$name => stringify!($name),)* }
            }

            /// The HTTP status that a server answers with.
            pub fn http_status(self) -> u16 {
                match self { $(ErrorKind::$name => $http,)* }
            }

            /// The kind with this code; codes that this build does not know are `Internal`.
            pub fn from_code(code: u16) -> ErrorKind {
                match code { $($code => ErrorKind::$name,)* _ => ErrorKind::Internal }
            }
        }
    };
}

kinds! {
    /// An argument is outside what the call accepts.
    InvalidArgument = 100, 400;
    /// A configuration file, variable or flag cannot be used.
    InvalidConfig = 101, 500;
    /// The node has been shut down.
    Closed = 102, 503;
    /// Prompt and answer together exceed the context.
    ContextOverflow = 103, 400;
    /// The caller cancelled.
    Cancelled = 104, 499;
    /// The process was forked after the node had started.
    Forked = 105, 500;
    /// This build or configuration lacks what the call needs.
    Unsupported = 106, 501;
    /// No model of this name or id is known.
    ModelNotFound = 200, 404;
    /// The file is not a GGUF that we accept.
    BadGguf = 201, 422;
    /// The architecture is not on the certified list.
    UnsupportedArchitecture = 202, 422;
    /// A shard that is needed here is not held here.
    ShardMissing = 203, 503;
    /// Bytes do not have the digest they were promised to have.
    ShardCorrupt = 204, 502;
    /// A manifest is malformed, or is not the one asked for.
    BadManifest = 205, 422;
    /// The tokenizer of the model cannot be built or used.
    BadTokenizer = 206, 422;
    /// The chat template of the model cannot be rendered.
    BadTemplate = 207, 422;
    /// A source on the web cannot be reached, or refuses.
    SourceUnreachable = 208, 502;
    /// A source on the web sent something else than what it was asked for.
    BadSource = 209, 502;
    /// A file on the web is no longer the one that was begun with.
    SourceChanged = 210, 409;
    /// The alias is another model's here.
    AliasTaken = 211, 409;
    /// No peer of this id is known.
    PeerNotFound = 300, 404;
    /// A peer cannot be reached.
    PeerUnreachable = 301, 503;
    /// No set of peers can answer for the model.
    NoPlan = 302, 503;
    /// A peer vanished in the middle of its work.
    PeerLost = 303, 502;
    /// A peer refused the work.
    Refused = 304, 503;
    /// A peer sent something that is not in the protocol.
    BadFrame = 305, 502;
    /// A deadline passed.
    Timeout = 306, 504;
    /// More work than the configured bounds admit.
    Overloaded = 307, 429;
    /// The peer's debt limit is reached.
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
    /// The memory budget does not admit it.
    OutOfMemory = 505, 503;
    /// The bound of what shards may take on the disk does not admit it.
    DiskBudget = 506, 507;
    /// An engine failed at its work.
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

/// An error as it crosses a border (wire, C, Python, HTTP): its kind and a sentence that says what, where and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    code: u16,
    message: String,
    /// No peer hears of it: fields are those of the caller's own request.
    #[serde(skip)]
    field: Option<String>,
}

impl Fault {
    /// Longest message that is kept, in bytes: a peer or a file name cannot make an error large.
    pub const MAX_MESSAGE: usize = 1024;

    /// A fault of this kind; the message is cut to [`Fault::MAX_MESSAGE`].
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        let mut message = message.to_string();
        let mut end = message.len().min(Self::MAX_MESSAGE);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        Self { code: kind.code(), message, field: None }
    }

    /// The same fault of a field of the request. The sentence begins with the field, unless it does already.
    #[must_use]
    pub fn about(self, field: impl Into<String>) -> Self {
        let field = field.into();
        let head = head(&field);
        let named = match self.message.starts_with(&head) {
            true => self,
            false => Self::new(self.kind(), format_args!("{head}{}", self.message)),
        };
        named.of_field(field)
    }

    /// The same fault of a field that the sentence names in its own words.
    #[must_use]
    pub fn of_field(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    /// The same fault where the field is called otherwise: each border has names of its own.
    #[must_use]
    pub fn renamed(self, field: &str) -> Self {
        let rest = self.field.as_deref().and_then(|old| self.message.strip_prefix(&head(old)));
        match rest {
            Some(rest) => Self::new(self.kind(), format_args!("{}{rest}", head(field))).of_field(field),
            None => self.of_field(field),
        }
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::from_code(self.code)
    }

    /// The field of the request that is to blame, by its name in C and Python and with its place in lists and objects:
    /// `max_tokens`, `inputs[2]`, `chat_template_kwargs.tools`. `None` where no field is, and in what a peer says.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// The sentence for people.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// How a sentence about a field begins.
fn head(field: &str) -> String {
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
    fn a_fault_names_its_field_once_and_under_the_name_that_a_border_has_for_it() {
        let fault = Fault::new(ErrorKind::InvalidArgument, "is 3").about("draft").about("draft");
        assert_eq!((fault.field(), fault.message()), (Some("draft"), "`draft`: is 3"));
        let renamed = fault.clone().renamed("draft_model");
        assert_eq!((renamed.field(), renamed.message()), (Some("draft_model"), "`draft_model`: is 3"));
        let own_words = Fault::new(ErrorKind::ModelNotFound, "no `m`").of_field("model").renamed("name");
        assert_eq!((own_words.field(), own_words.message()), (Some("name"), "no `m`"));
        let told: Fault = serde_json::from_value(serde_json::to_value(&fault).unwrap()).unwrap();
        assert_eq!(told.field(), None, "no peer hears of it");
        let long = Fault::new(ErrorKind::Io, "e".repeat(Fault::MAX_MESSAGE)).about("x");
        assert!(long.message().len() <= Fault::MAX_MESSAGE);
    }

    #[test]
    fn a_fault_is_bounded() {
        let fault = Fault::new(ErrorKind::Io, "é".repeat(Fault::MAX_MESSAGE));
        assert!(fault.message().len() <= Fault::MAX_MESSAGE);
    }
}
