//! Reads JSON bodies, and says of what does not fit where it is, what was wanted and what was found.
//!
//! serde's own errors speak of Rust's types, name no field where one is missing, and take a number in the place of a word for
//! text that is not JSON. So bodies are read through [`Plain`], whose errors are [`Misfit`]s.

use std::cell::Cell;
use std::fmt::{self, Display};

use axum::http::StatusCode;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IgnoredAny, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};

use super::reject::Reject;
use crate::base::ErrorKind;

/// Characters of a foreign text that a message quotes.
const MAX_QUOTED: usize = 64;

/// Parses a body. Nesting is bounded by the types, and by serde_json to 128 levels.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Reject> {
    let slot = Slot::default();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize(Plain { inner: &mut json, slot: &slot }) {
        Ok(value) => json.end().map(|()| value).map_err(|cause| not_json(&cause)),
        // What does not fit may stand before what is not JSON: the latter is said first.
        Err(error) => match check_json(bytes) {
            Ok(()) => {
                let path = error.path().to_string();
                Err(error.into_inner().at(&path))
            }
            Err(reject) => Err(reject),
        },
    }
}

/// Refuses what is not JSON, whatever it says.
fn check_json(bytes: &[u8]) -> Result<(), Reject> {
    if let Err(cause) = std::str::from_utf8(bytes) {
        return Err(malformed(format_args!("it is not UTF-8 from byte {} on", cause.valid_up_to())));
    }
    serde_json::from_slice::<IgnoredAny>(bytes).map(drop).map_err(|cause| not_json(&cause))
}

fn not_json(cause: &serde_json::Error) -> Reject {
    match cause.is_eof() {
        true => malformed(format_args!("it ends too early, at line {} column {}", cause.line(), cause.column())),
        false => malformed(cause),
    }
}

fn malformed(why: impl Display) -> Reject {
    Reject::new(StatusCode::BAD_REQUEST, "malformed_json", format!("the body is not JSON: {why}"))
}

/// What of a body does not fit.
#[derive(Debug)]
struct Misfit {
    /// The field of the object, where the object itself is at fault.
    field: Option<&'static str>,
    why: String,
}

impl Misfit {
    fn new(wanted: impl Display, found: Unexpected<'_>) -> Self {
        let found = match found {
            Unexpected::Bool(value) => value.to_string(),
            Unexpected::Unsigned(number) => number.to_string(),
            Unexpected::Signed(number) => number.to_string(),
            Unexpected::Float(number) => number.to_string(),
            Unexpected::Str(text) => format!("{:?}", text.chars().take(MAX_QUOTED).collect::<String>()),
            Unexpected::Unit | Unexpected::Option => "null".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "an object".to_owned(),
            _ => "something else".to_owned(),
        };
        de::Error::custom(format_args!("must be {wanted}, not {found}"))
    }

    /// The refusal of what stands at this path, `.` for the whole body.
    fn at(self, path: &str) -> Reject {
        match (path, self.field) {
            (".", None) => Reject::of(ErrorKind::InvalidArgument, format!("the body {}", self.why)),
            (".", Some(field)) => Reject::field(field, self.why),
            (path, None) => Reject::field(path, self.why),
            (path, Some(field)) => Reject::field(format!("{path}.{field}"), self.why),
        }
    }
}

/// What serde calls a type, in the words of who writes JSON.
fn plain(wanted: &str) -> &str {
    match wanted {
        "u32" => "a whole number from 0 to 4294967295",
        "i64" => "a whole number of at most 64 bits",
        "f32" => "a number",
        "a boolean" => "true or false",
        "a string" => "text",
        "a sequence" => "a list",
        "a map" => "an object",
        wanted if wanted.starts_with("struct ") => "an object",
        wanted => wanted,
    }
}

/// `a`, or one of several.
struct OneOf(&'static [&'static str]);

impl Display for OneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.0.iter().enumerate() {
            let before = ["", "one of ", ", "][usize::from(self.0.len() > 1) + usize::from(index > 0)];
            write!(f, "{before}`{word}`")?;
        }
        Ok(())
    }
}

impl Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: Display>(why: T) -> Self {
        Self { field: None, why: why.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::new(plain(&wanted.to_string()), found)
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::invalid_type(found, wanted)
    }

    fn invalid_length(len: usize, wanted: &dyn Expected) -> Self {
        Self::custom(format_args!("must be {}, not of {len}", plain(&wanted.to_string())))
    }

    fn unknown_variant(found: &str, words: &'static [&'static str]) -> Self {
        Self::new(OneOf(words), Unexpected::Str(found))
    }

    fn unknown_field(_: &str, _: &'static [&'static str]) -> Self {
        Self::custom("is not known to this server; leave it out")
    }

    fn missing_field(field: &'static str) -> Self {
        Self { field: Some(field), why: "is missing".to_owned() }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self { field: Some(field), why: "is given twice".to_owned() }
    }
}

/// Where a misfit waits while serde_json, which has errors of its own, passes it on.
#[derive(Default)]
struct Slot(Cell<Option<Misfit>>);

impl Slot {
    /// Lays a misfit aside.
    fn lay<T, E: de::Error>(&self, read: Result<T, Misfit>) -> Result<T, E> {
        read.map_err(|misfit| {
            self.0.set(Some(misfit));
            E::custom("it does not fit")
        })
    }

    /// Takes it out again. An error that was not laid here is serde_json's own: of a number too large, say.
    fn take<T, E: Display>(&self, read: Result<T, E>) -> Result<T, Misfit> {
        let own = |error: E| de::Error::custom(format_args!("cannot be read: {error}"));
        read.map_err(|error| self.0.take().unwrap_or_else(|| own(error)))
    }
}

/// A deserializer whose errors are misfits. JSON says itself what it is, so that the type is asked for only where it matters.
struct Plain<'s, D> {
    inner: D,
    slot: &'s Slot,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Plain<'_, D> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.slot.take(self.inner.deserialize_any(Reader { visitor, slot: self.slot, lists: true }))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.slot.take(self.inner.deserialize_option(Reader { visitor, slot: self.slot, lists: true }))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.slot.take(self.inner.deserialize_ignored_any(Reader { visitor, slot: self.slot, lists: true }))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    /// An object, where serde would take a list of its values too.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.slot.take(self.inner.deserialize_any(Reader { visitor, slot: self.slot, lists: false }))
    }

    /// One of some words.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_any(Word { visitor, words: OneOf(words) })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier
    }
}

/// Reads a word.
struct Word<V> {
    visitor: V,
    words: OneOf,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Word<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words.fmt(f)
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<V::Value, E> {
        self.visitor.visit_enum(word.into_deserializer())
    }
}

/// Hands to a visitor what serde_json reads.
struct Reader<'s, V> {
    visitor: V,
    slot: &'s Slot,
    /// Whether a list may be read.
    lists: bool,
}

macro_rules! values {
    ($($visit:ident($value:ty);)*) => {
        $(fn $visit<E: de::Error>(self, value: $value) -> Result<V::Value, E> {
            self.slot.lay(self.visitor.$visit(value))
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Reader<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    values! {
        visit_bool(bool);
        visit_i64(i64);
        visit_u64(u64);
        visit_f64(f64);
        visit_str(&str);
        visit_borrowed_str(&'de str);
        visit_string(String);
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.slot.lay(self.visitor.visit_unit())
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.slot.lay(self.visitor.visit_none())
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.slot.lay(self.visitor.visit_some(Plain { inner, slot: self.slot }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let read = match self.lists {
            true => self.visitor.visit_seq(Parts { inner, slot: self.slot }),
            false => Err(de::Error::invalid_type(Unexpected::Seq, &self.visitor)),
        };
        self.slot.lay(read)
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.slot.lay(self.visitor.visit_map(Parts { inner, slot: self.slot }))
    }
}

/// What a list or an object consists of.
struct Parts<'s, A> {
    inner: A,
    slot: &'s Slot,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Parts<'_, A> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        self.slot.take(self.inner.next_element_seed(Part { seed, slot: self.slot }))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Parts<'_, A> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        self.slot.take(self.inner.next_key_seed(Part { seed, slot: self.slot }))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Misfit> {
        self.slot.take(self.inner.next_value_seed(Part { seed, slot: self.slot }))
    }
}

/// One of them.
struct Part<'s, T> {
    seed: T,
    slot: &'s Slot,
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Part<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T::Value, D::Error> {
        self.slot.lay(self.seed.deserialize(Plain { inner, slot: self.slot }))
    }
}
