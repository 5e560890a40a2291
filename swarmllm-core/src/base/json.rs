//! Reads JSON from callers. An error gives the path of the value, the expected type and the value found.
//!
//! serde's own errors name Rust types, omit the path of a missing field, and report a number in the place of a variant name
//! as malformed JSON. Texts and values are therefore read through [`PlainDeserializer`], whose errors are [`DataError`]s.
//! The HTTP server, the C library and the Python module share these messages.

use std::cell::Cell;
use std::fmt::{self, Display};

use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IgnoredAny,
    IntoDeserializer, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde_json::Value;

/// Characters of an input text that a message quotes.
pub const MAX_QUOTED: usize = 64;
/// Longest path in a message, in bytes. Keys come from the caller.
const MAX_PATH: usize = 128;
/// Message for an unknown field.
pub const UNKNOWN_FIELD: &str = "is not known; leave it out";

/// Why JSON could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonError {
    /// The input is not JSON.
    Malformed(String),
    /// The input is JSON of an unexpected type or value.
    Data {
        /// Path of the value; `None` for the whole input.
        field: Option<String>,
        /// Expected and found values, as the end of a sentence that begins with the field.
        why: String,
    },
}

impl JsonError {
    /// An error in this field.
    pub fn field(field: &str, why: impl Display) -> Self {
        Self::Data { field: Some(cut(field.to_owned())), why: why.to_string() }
    }

    /// The same error with its path prefixed by the field `name`.
    #[must_use]
    pub fn nested_in(self, name: &str) -> Self {
        match self {
            Self::Malformed(why) => Self::Malformed(why),
            Self::Data { field: None, why } => Self::field(name, why),
            Self::Data { field: Some(path), why } if path.starts_with('[') => {
                Self::field(&format!("{name}{path}"), why)
            }
            Self::Data { field: Some(path), why } => Self::field(&format!("{name}.{path}"), why),
        }
    }

    /// The error as a sentence; `whole` names the input in it.
    pub fn sentence(&self, whole: &str) -> String {
        match self {
            Self::Malformed(why) => format!("{whole} is not JSON: {why}"),
            Self::Data { field: None, why } => format!("{whole} {why}"),
            Self::Data { field: Some(field), why } => format!("`{field}`: {why}"),
        }
    }
}

/// Parses a text. Nesting is bounded by the types, and by serde_json to 128 levels.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    let slot = ErrorSlot::default();
    let mut json = serde_json::Deserializer::from_slice(text);
    match read(PlainDeserializer { inner: &mut json, slot: &slot }) {
        Ok(value) => json.end().map(|()| value).map_err(|cause| malformed(&cause)),
        // A type error may come before a syntax error in the text. The syntax error takes precedence.
        Err(error) => Err(check_syntax(text).err().unwrap_or(error)),
    }
}

/// Deserializes a parsed value.
pub fn convert<T: DeserializeOwned>(value: Value) -> Result<T, JsonError> {
    read(PlainDeserializer { inner: value, slot: &ErrorSlot::default() })
}

fn read<'de, T: DeserializeOwned, D: Deserializer<'de>>(json: PlainDeserializer<'_, D>) -> Result<T, JsonError> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = error.path().to_string();
        error.into_inner().at(&path)
    })
}

/// Refuses input that is not JSON, without regard to types.
fn check_syntax(text: &[u8]) -> Result<(), JsonError> {
    if let Err(cause) = std::str::from_utf8(text) {
        return Err(JsonError::Malformed(format!("it is not UTF-8 from byte {} on", cause.valid_up_to())));
    }
    serde_json::from_slice::<IgnoredAny>(text).map(drop).map_err(|cause| malformed(&cause))
}

fn malformed(cause: &serde_json::Error) -> JsonError {
    JsonError::Malformed(match cause.is_eof() {
        true => format!("it ends too early, at line {} column {}", cause.line(), cause.column()),
        false => cause.to_string(),
    })
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_PATH));
    text
}

/// A type or value error, still without its path.
#[derive(Debug)]
struct DataError {
    /// The field of the object, for a missing or a repeated field.
    field: Option<&'static str>,
    why: String,
}

impl DataError {
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

    /// Adds the path, `.` for the whole input.
    fn at(self, path: &str) -> JsonError {
        match (path, self.field) {
            (".", None) => JsonError::Data { field: None, why: self.why },
            (".", Some(field)) => JsonError::field(field, self.why),
            (path, None) => JsonError::field(path, self.why),
            (path, Some(field)) => JsonError::field(&format!("{path}.{field}"), self.why),
        }
    }
}

/// Translates serde's name of an expected type into JSON terms.
pub fn expected_in_json(wanted: &str) -> &str {
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

/// Displays as "`a`", or as "one of `a`, `b`".
struct VariantNames(&'static [&'static str]);

impl Display for VariantNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.0.iter().enumerate() {
            let before = ["", "one of ", ", "][usize::from(self.0.len() > 1) + usize::from(index > 0)];
            write!(f, "{before}`{word}`")?;
        }
        Ok(())
    }
}

impl Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for DataError {}

impl de::Error for DataError {
    fn custom<T: Display>(why: T) -> Self {
        Self { field: None, why: why.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::new(expected_in_json(&wanted.to_string()), found)
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::invalid_type(found, wanted)
    }

    fn invalid_length(len: usize, wanted: &dyn Expected) -> Self {
        Self::custom(format_args!("must be {}, not of {len}", expected_in_json(&wanted.to_string())))
    }

    fn unknown_variant(found: &str, words: &'static [&'static str]) -> Self {
        Self::new(VariantNames(words), Unexpected::Str(found))
    }

    fn unknown_field(_: &str, _: &'static [&'static str]) -> Self {
        Self::custom(UNKNOWN_FIELD)
    }

    fn missing_field(field: &'static str) -> Self {
        Self { field: Some(field), why: "is missing".to_owned() }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self { field: Some(field), why: "is given twice".to_owned() }
    }
}

/// Holds a [`DataError`] while serde_json, which has an error type of its own, unwinds.
#[derive(Default)]
struct ErrorSlot(Cell<Option<DataError>>);

impl ErrorSlot {
    /// Stores the error and returns a placeholder of type `E`.
    fn store<T, E: de::Error>(&self, read: Result<T, DataError>) -> Result<T, E> {
        read.map_err(|error| {
            self.0.set(Some(error));
            E::custom("placeholder")
        })
    }

    /// Takes the stored error. Without one, the error is serde_json's own, for example about a number out of range.
    fn take<T, E: Display>(&self, read: Result<T, E>) -> Result<T, DataError> {
        let own = |error: E| de::Error::custom(format_args!("cannot be read: {error}"));
        read.map_err(|error| self.0.take().unwrap_or_else(|| own(error)))
    }
}

/// A deserializer with [`DataError`] as its error type. JSON is self-describing: the expected type matters for few methods.
struct PlainDeserializer<'s, D> {
    inner: D,
    slot: &'s ErrorSlot,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for PlainDeserializer<'_, D> {
    type Error = DataError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        self.slot.take(self.inner.deserialize_any(PlainVisitor { visitor, slot: self.slot, lists: true }))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        self.slot.take(self.inner.deserialize_option(PlainVisitor { visitor, slot: self.slot, lists: true }))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        self.slot.take(self.inner.deserialize_ignored_any(PlainVisitor { visitor, slot: self.slot, lists: true }))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DataError> {
        visitor.visit_newtype_struct(self)
    }

    /// Accepts an object only; serde would also accept a list of the field values.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DataError> {
        self.slot.take(self.inner.deserialize_any(PlainVisitor { visitor, slot: self.slot, lists: false }))
    }

    /// Accepts one of the variant names.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DataError> {
        self.deserialize_any(EnumVisitor { visitor, names: VariantNames(names) })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier
    }
}

/// Visits an externally tagged enum: a variant name alone, or an object with the name as its only key.
struct EnumVisitor<V> {
    visitor: V,
    names: VariantNames,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for EnumVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.names.fmt(f)
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<V::Value, E> {
        self.visitor.visit_enum(name.into_deserializer())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<V::Value, A::Error> {
        let Some(name) = map.next_key::<String>()? else {
            return Err(de::Error::invalid_type(Unexpected::Map, &self));
        };
        if !self.names.0.contains(&name.as_str()) {
            let found = format!("an object with `{}`", name.chars().take(MAX_QUOTED).collect::<String>());
            return Err(de::Error::invalid_type(Unexpected::Other(&found), &self));
        }
        self.visitor.visit_enum(MapEnumAccess { name, map })
    }
}

/// An object whose first key, the variant name, has been read.
struct MapEnumAccess<A> {
    name: String,
    map: A,
}

impl<'de, A: MapAccess<'de>> EnumAccess<'de> for MapEnumAccess<A> {
    type Error = A::Error;
    type Variant = MapVariantAccess<A>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, MapVariantAccess<A>), A::Error> {
        Ok((seed.deserialize(self.name.into_deserializer())?, MapVariantAccess(self.map)))
    }
}

/// The content of the variant: the value of that key.
struct MapVariantAccess<A>(A);

impl<'de, A: MapAccess<'de>> VariantAccess<'de> for MapVariantAccess<A> {
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

/// Passes serde_json's values to the visitor.
struct PlainVisitor<'s, V> {
    visitor: V,
    slot: &'s ErrorSlot,
    /// Whether lists are accepted.
    lists: bool,
}

macro_rules! values {
    ($($visit:ident($value:ty);)*) => {
        $(fn $visit<E: de::Error>(self, value: $value) -> Result<V::Value, E> {
            self.slot.store(self.visitor.$visit(value))
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for PlainVisitor<'_, V> {
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
        self.slot.store(self.visitor.visit_unit())
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.slot.store(self.visitor.visit_none())
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.slot.store(self.visitor.visit_some(PlainDeserializer { inner, slot: self.slot }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let read = match self.lists {
            true => self.visitor.visit_seq(PlainAccess { inner, slot: self.slot }),
            false => Err(de::Error::invalid_type(Unexpected::Seq, &self.visitor)),
        };
        self.slot.store(read)
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.slot.store(self.visitor.visit_map(PlainAccess { inner, slot: self.slot }))
    }
}

/// Access to the elements of a list or the entries of an object.
struct PlainAccess<'s, A> {
    inner: A,
    slot: &'s ErrorSlot,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for PlainAccess<'_, A> {
    type Error = DataError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DataError> {
        self.slot.take(self.inner.next_element_seed(PlainSeed { seed, slot: self.slot }))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for PlainAccess<'_, A> {
    type Error = DataError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DataError> {
        match self.slot.take(self.inner.next_key::<String>())? {
            Some(key) => seed.deserialize(KeyDeserializer(key)).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, DataError> {
        self.slot.take(self.inner.next_value_seed(PlainSeed { seed, slot: self.slot }))
    }
}

/// Deserializes one element, key or value.
struct PlainSeed<'s, T> {
    seed: T,
    slot: &'s ErrorSlot,
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for PlainSeed<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T::Value, D::Error> {
        self.slot.store(self.seed.deserialize(PlainDeserializer { inner, slot: self.slot }))
    }
}

/// The key of an object: a string in JSON, also where a number is expected.
struct KeyDeserializer(String);

impl<'de> Deserializer<'de> for KeyDeserializer {
    type Error = DataError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        visitor.visit_string(self.0)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
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

/// A whole number from `MIN` to `MAX`. The error for any other value states the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundedU32<const MIN: u32, const MAX: u32>(pub u32);

struct BoundedU32Visitor<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Visitor<'_> for BoundedU32Visitor<MIN, MAX> {
    type Value = BoundedU32<MIN, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {MIN} to {MAX}")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        match u32::try_from(number) {
            Ok(whole) if (MIN..=MAX).contains(&whole) => Ok(BoundedU32(whole)),
            _ => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
        }
    }

    /// Accepts `8.0` and `1e3`: JSON has a single number type.
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        let whole = number as u64;
        match whole as f64 == number {
            true => self.visit_u64(whole),
            false => Err(E::invalid_value(Unexpected::Float(number), &self)),
        }
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for BoundedU32<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_u32(BoundedU32Visitor)
    }
}

/// Reads a string or a list of at most `max` strings; `null` is an empty list.
pub fn string_or_seq<'de, D: Deserializer<'de>>(json: D, max: usize) -> Result<Vec<String>, D::Error> {
    json.deserialize_any(StringOrSeq(max))
}

struct StringOrSeq(usize);

impl<'de> Visitor<'de> for StringOrSeq {
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
    enum Format {
        Any,
        Regex(String),
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Options {
        form: Option<Format>,
        bias: BTreeMap<u32, f32>,
        tokens: Option<u32>,
        threads: Option<BoundedU32<1, 64>>,
    }

    /// The message about an invalid `options` value.
    fn message(value: Value) -> String {
        let of_text = parse::<Options>(value.to_string().as_bytes()).expect_err("the value is invalid");
        let of_value = convert::<Options>(value).expect_err("the value is invalid");
        assert_eq!(of_text, of_value);
        of_value.sentence("`options`")
    }

    #[test]
    fn enum_objects_and_numeric_keys_are_accepted() {
        let read = convert::<Options>(json!({"form": {"regex": "a+"}, "bias": {"7": -1}})).unwrap();
        assert!(matches!(&read.form, Some(Format::Regex(text)) if text == "a+") && read.bias[&7] == -1.0);
        for alone in [json!("any"), json!({"any": null})] {
            assert!(matches!(convert(json!({"form": alone})), Ok(Options { form: Some(Format::Any), .. })));
        }
        assert!(matches!(convert(json!({"threads": 64})), Ok(Options { threads: Some(BoundedU32(64)), .. })));
        assert!(matches!(convert(json!({"form": null})), Ok(Options { form: None, bias, .. }) if bias.is_empty()));
    }

    #[test]
    fn an_error_names_its_path_in_texts_and_values() {
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
        for (value, expected) in table {
            assert_eq!(message(value), expected);
        }
        let error = convert::<Vec<Options>>(json!([{"tokens": []}])).unwrap_err().nested_in("parts");
        assert_eq!(error.sentence(""), "`parts[0].tokens`: must be a whole number from 0 to 4294967295, not a list");
        assert_eq!(
            parse::<Options>(b"{").unwrap_err().sentence("it"),
            "it is not JSON: it ends too early, at line 1 column 1"
        );
    }

    #[test]
    fn input_text_does_not_make_messages_long() {
        let long = "\u{e9}".repeat(10_000);
        for value in [json!({ &long: 1 }), json!({"tokens": &long}), json!({"form": { &long: 1 }})] {
            assert!(message(value).len() < 512);
        }
    }
}
