//! Reads JSON that callers give, and says of what does not fit where it is, what was wanted and what was found.
//!
//! serde's own errors speak of Rust's types, name no field where one is missing, and take a number in the place of a word for
//! text that is not JSON. So texts and values are read through [`Plain`], whose errors are [`Misfit`]s. The HTTP server, the C
//! library and the Python module speak in these words.

use std::cell::Cell;
use std::fmt::{self, Display};

use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IgnoredAny,
    IntoDeserializer, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde_json::Value;

/// Characters of a foreign text that a message quotes.
pub const MAX_QUOTED: usize = 64;
/// Longest path that a message names, in bytes. Keys are foreign texts.
const MAX_PATH: usize = 128;
/// What is said of a field that nobody knows.
pub const UNKNOWN: &str = "is not known; leave it out";

/// Why JSON could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonError {
    /// The text is not JSON.
    Malformed(String),
    /// It is JSON, and something else than was wanted.
    Unfit {
        /// The path of what does not fit; nothing where that is the whole.
        field: Option<String>,
        /// What was wanted and what was found, as the end of a sentence that begins with the field.
        why: String,
    },
}

impl JsonError {
    /// A field that does not fit.
    pub fn field(field: &str, why: impl Display) -> Self {
        Self::Unfit { field: Some(cut(field.to_owned())), why: why.to_string() }
    }

    /// The same error, where what was read stands in a field of this name.
    #[must_use]
    pub fn below(self, name: &str) -> Self {
        match self {
            Self::Malformed(why) => Self::Malformed(why),
            Self::Unfit { field: None, why } => Self::field(name, why),
            Self::Unfit { field: Some(path), why } if path.starts_with('[') => {
                Self::field(&format!("{name}{path}"), why)
            }
            Self::Unfit { field: Some(path), why } => Self::field(&format!("{name}.{path}"), why),
        }
    }

    /// The error for people; `whole` is what they call what was read.
    pub fn sentence(&self, whole: &str) -> String {
        match self {
            Self::Malformed(why) => format!("{whole} is not JSON: {why}"),
            Self::Unfit { field: None, why } => format!("{whole} {why}"),
            Self::Unfit { field: Some(field), why } => format!("`{field}`: {why}"),
        }
    }
}

/// Parses a text. Nesting is bounded by the types, and by serde_json to 128 levels.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    let slot = Slot::default();
    let mut json = serde_json::Deserializer::from_slice(text);
    match fit(Plain { inner: &mut json, slot: &slot }) {
        Ok(value) => json.end().map(|()| value).map_err(|cause| not_json(&cause)),
        // What does not fit may stand before what is not JSON: the latter is said first.
        Err(misfit) => Err(check_json(text).err().unwrap_or(misfit)),
    }
}

/// Reads what has been parsed.
pub fn convert<T: DeserializeOwned>(value: Value) -> Result<T, JsonError> {
    fit(Plain { inner: value, slot: &Slot::default() })
}

fn fit<'de, T: DeserializeOwned, D: Deserializer<'de>>(plain: Plain<'_, D>) -> Result<T, JsonError> {
    serde_path_to_error::deserialize(plain).map_err(|error| {
        let path = error.path().to_string();
        error.into_inner().at(&path)
    })
}

/// Refuses what is not JSON, whatever it says.
fn check_json(text: &[u8]) -> Result<(), JsonError> {
    if let Err(cause) = std::str::from_utf8(text) {
        return Err(JsonError::Malformed(format!("it is not UTF-8 from byte {} on", cause.valid_up_to())));
    }
    serde_json::from_slice::<IgnoredAny>(text).map(drop).map_err(|cause| not_json(&cause))
}

fn not_json(cause: &serde_json::Error) -> JsonError {
    JsonError::Malformed(match cause.is_eof() {
        true => format!("it ends too early, at line {} column {}", cause.line(), cause.column()),
        false => cause.to_string(),
    })
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_PATH));
    text
}

/// What does not fit.
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
            Unexpected::Other(what) => what.to_owned(),
            _ => "something else".to_owned(),
        };
        de::Error::custom(format_args!("must be {wanted}, not {found}"))
    }

    /// The same at this path, `.` for the whole.
    fn at(self, path: &str) -> JsonError {
        match (path, self.field) {
            (".", None) => JsonError::Unfit { field: None, why: self.why },
            (".", Some(field)) => JsonError::field(field, self.why),
            (path, None) => JsonError::field(path, self.why),
            (path, Some(field)) => JsonError::field(&format!("{path}.{field}"), self.why),
        }
    }
}

/// What serde calls a type, in the words of those who write JSON.
pub fn plain(wanted: &str) -> &str {
    match wanted {
        "u32" => "a whole number from 0 to 4294967295",
        "u64" => "a whole number from 0 to 18446744073709551615",
        "i64" => "a whole number of at most 64 bits",
        "f32" | "f64" => "a number",
        "unit" => "null",
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
        Self::custom(UNKNOWN)
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

/// Reads a word, alone or as the only key of an object that holds what belongs to it.
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

    fn visit_map<A: MapAccess<'de>>(self, mut parts: A) -> Result<V::Value, A::Error> {
        let Some(word) = parts.next_key::<String>()? else {
            return Err(de::Error::invalid_type(Unexpected::Map, &self));
        };
        if !self.words.0.contains(&word.as_str()) {
            let found = format!("an object with `{}`", word.chars().take(MAX_QUOTED).collect::<String>());
            return Err(de::Error::invalid_type(Unexpected::Other(&found), &self));
        }
        self.visitor.visit_enum(Tagged { word, parts })
    }
}

/// An object whose first key is a word.
struct Tagged<A> {
    word: String,
    parts: A,
}

impl<'de, A: MapAccess<'de>> EnumAccess<'de> for Tagged<A> {
    type Error = A::Error;
    type Variant = Content<A>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Content<A>), A::Error> {
        Ok((seed.deserialize(self.word.into_deserializer())?, Content(self.parts)))
    }
}

/// What belongs to the word.
struct Content<A>(A);

impl<'de, A: MapAccess<'de>> VariantAccess<'de> for Content<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.newtype_variant_seed(std::marker::PhantomData)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(mut self, seed: T) -> Result<T::Value, A::Error> {
        let value = self.0.next_value_seed(seed)?;
        match self.0.next_key::<IgnoredAny>()? {
            None => Ok(value),
            Some(_) => Err(de::Error::custom("must be the only field there")),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, A::Error> {
        Err(de::Error::invalid_type(Unexpected::TupleVariant, &visitor))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        Err(de::Error::invalid_type(Unexpected::StructVariant, &visitor))
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
        match self.slot.take(self.inner.next_key::<String>())? {
            Some(key) => seed.deserialize(Key(key)).map(Some),
            None => Ok(None),
        }
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

/// The key of an object, which is text in JSON, also where a number is wanted.
struct Key(String);

impl<'de> Deserializer<'de> for Key {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_string(self.0)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0.parse() {
            Ok(number) => visitor.visit_u64(number),
            Err(_) => visitor.visit_string(self.0),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq
        tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// A whole number of a range. Another one is refused with the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole<const LEAST: u32, const MOST: u32>(pub u32);

struct WholeVisitor<const LEAST: u32, const MOST: u32>;

impl<const LEAST: u32, const MOST: u32> Visitor<'_> for WholeVisitor<LEAST, MOST> {
    type Value = Whole<LEAST, MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {LEAST} to {MOST}")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        match u32::try_from(number) {
            Ok(whole) if (LEAST..=MOST).contains(&whole) => Ok(Whole(whole)),
            _ => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
        }
    }

    /// `8.0` and `1e3` are whole numbers in JSON, which knows one kind alone.
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        let whole = number as u64;
        match whole as f64 == number {
            true => self.visit_u64(whole),
            false => Err(E::invalid_value(Unexpected::Float(number), &self)),
        }
    }
}

impl<'de, const LEAST: u32, const MOST: u32> Deserialize<'de> for Whole<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_u32(WholeVisitor)
    }
}

/// Reads text, or a list of at most `most` texts; `null` is none.
pub fn texts<'de, D: Deserializer<'de>>(json: D, most: usize) -> Result<Vec<String>, D::Error> {
    json.deserialize_any(Texts(most))
}

struct Texts(usize);

impl<'de> Visitor<'de> for Texts {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "text, or a list of at most {} texts", self.0)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Vec<String>, E> {
        Ok(Vec::new())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element()? {
            if texts.len() == self.0 {
                return Err(de::Error::custom(format_args!("at most {} texts are accepted", self.0)));
            }
            texts.push(text);
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Form {
        Any,
        Regex(String),
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Options {
        form: Option<Form>,
        bias: BTreeMap<u32, f32>,
        tokens: Option<u32>,
        threads: Option<Whole<1, 64>>,
    }

    /// What is said of a value, as a part of `options`.
    fn said(value: Value) -> String {
        let of_text = parse::<Options>(value.to_string().as_bytes()).expect_err("it does not fit");
        let of_value = convert::<Options>(value).expect_err("it does not fit");
        assert_eq!(of_text, of_value);
        of_value.sentence("`options`")
    }

    #[test]
    fn words_with_content_and_numbers_as_keys_are_read() {
        let read = convert::<Options>(json!({"form": {"regex": "a+"}, "bias": {"7": -1}})).unwrap();
        assert!(matches!(&read.form, Some(Form::Regex(text)) if text == "a+") && read.bias[&7] == -1.0);
        for alone in [json!("any"), json!({"any": null})] {
            assert!(matches!(convert(json!({"form": alone})), Ok(Options { form: Some(Form::Any), .. })));
        }
        assert!(matches!(convert(json!({"threads": 64})), Ok(Options { threads: Some(Whole(64)), .. })));
        assert!(matches!(convert(json!({"form": null})), Ok(Options { form: None, bias, .. }) if bias.is_empty()));
    }

    #[test]
    fn what_does_not_fit_is_named_by_its_path_in_a_text_and_in_a_value() {
        let table = [
            (json!([]), "`options` must be an object, not a list"),
            (json!({"token": 3}), "`token`: is not known; leave it out"),
            (json!({"tokens": "three"}), "`tokens`: must be a whole number from 0 to 4294967295, not \"three\""),
            (json!({"tokens": -1}), "`tokens`: must be a whole number from 0 to 4294967295, not -1"),
            (json!({"threads": 0}), "`threads`: must be a whole number from 1 to 64, not 0"),
            (json!({"threads": 65}), "`threads`: must be a whole number from 1 to 64, not 65"),
            (json!({"threads": -1}), "`threads`: must be a whole number from 1 to 64, not -1"),
            (json!({"threads": 1.5}), "`threads`: must be a whole number from 1 to 64, not 1.5"),
            (json!({"bias": {"x": 1}}), "`bias.x`: must be a whole number from 0 to 4294967295, not \"x\""),
            (json!({"bias": {"7": "x"}}), "`bias.7`: must be a number, not \"x\""),
            (json!({"form": 3}), "`form`: must be one of `any`, `regex`, not 3"),
            (json!({"form": {}}), "`form`: must be one of `any`, `regex`, not an object"),
            (json!({"form": {"lark": 3}}), "`form`: must be one of `any`, `regex`, not an object with `lark`"),
            (json!({"form": {"regex": 3}}), "`form.regex`: must be text, not 3"),
            (json!({"form": {"regex": "a", "x": 3}}), "`form.regex`: must be the only field there"),
            (json!({"form": {"any": 3}}), "`form.any`: must be null, not 3"),
        ];
        for (value, sentence) in table {
            assert_eq!(said(value), sentence);
        }
        let error = convert::<Vec<Options>>(json!([{"tokens": []}])).unwrap_err().below("parts");
        assert_eq!(error.sentence(""), "`parts[0].tokens`: must be a whole number from 0 to 4294967295, not a list");
        assert_eq!(
            parse::<Options>(b"{").unwrap_err().sentence("it"),
            "it is not JSON: it ends too early, at line 1 column 1"
        );
    }

    #[test]
    fn a_foreign_text_makes_no_message_long() {
        let long = "\u{e9}".repeat(10_000);
        for value in [json!({ &long: 1 }), json!({"tokens": &long}), json!({"form": { &long: 1 }})] {
            assert!(said(value).len() < 512);
        }
    }
}
