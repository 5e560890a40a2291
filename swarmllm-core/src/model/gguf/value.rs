//! Values of key-values: a typed view that borrows from a [`Fact`]'s raw bytes, typed getters and constructors.

use super::{GgufError, limits};
use crate::model::Fact;

/// The value types of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this id.
    pub fn from_id(id: u32) -> Option<ValueType> {
        Self::ALL.get(id as usize).copied()
    }

    /// Bytes of one value; `None` for strings and arrays.
    pub fn width(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// A value, borrowed from a fact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// Parses the value of a fact and checks every byte. Nothing is copied.
    pub fn parse(fact: &'a Fact) -> Result<Value<'a>, GgufError> {
        let ty =
            ValueType::from_id(fact.ty).ok_or_else(|| GgufError::ValueType { key: fact.key.clone(), ty: fact.ty })?;
        let parsed = match ty {
            ValueType::Array => parse_array(&fact.raw),
            ty => split_value(ty, &fact.raw),
        };
        match parsed {
            Ok((value, [])) => Ok(value),
            Ok(_) => Err(GgufError::Value { key: fact.key.clone(), reason: "bytes follow it" }),
            Err(NESTED) => Err(GgufError::NestedArray { key: fact.key.clone() }),
            Err(reason) => Err(GgufError::Value { key: fact.key.clone(), reason }),
        }
    }

    /// A non-negative integer of any type.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// A float; doubles are rounded.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::F32(value) => Some(value),
            Self::F64(value) => Some(value as f32),
            _ => None,
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = *self { Some(value) } else { None }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&'a str> {
        if let Self::String(value) = *self { Some(value) } else { None }
    }

    /// An array.
    pub fn as_array(&self) -> Option<Array<'a>> {
        if let Self::Array(value) = *self { Some(value) } else { None }
    }

    /// The value's type.
    pub fn ty(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }
}

/// An array of scalars or strings. Parsing checks it; iteration decodes the elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Array<'a> {
    element: ValueType,
    len: usize,
    raw: &'a [u8],
}

impl<'a> Array<'a> {
    /// Type of the elements, never [`ValueType::Array`].
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the array has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> Elements<'a> {
        Elements { element: self.element, left: self.len, raw: self.raw }
    }
}

/// The elements of an [`Array`].
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    element: ValueType,
    left: usize,
    raw: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (value, rest) = split_value(self.element, self.raw).ok()?;
        self.raw = rest;
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Elements<'_> {}

type Split<'a> = Result<(Value<'a>, &'a [u8]), &'static str>;

const NESTED: &str = "it is an array of arrays";
const SHORT: &str = "it ends too early";

fn split<const N: usize>(raw: &[u8]) -> Result<([u8; N], &[u8]), &'static str> {
    raw.split_first_chunk::<N>().map(|(head, rest)| (*head, rest)).ok_or(SHORT)
}

/// The scalar or string at the front of `raw`, and the remaining bytes.
fn split_value(ty: ValueType, raw: &[u8]) -> Split<'_> {
    macro_rules! number {
        ($name:ident, $kind:ty) => {{
            let (bytes, rest) = split(raw)?;
            Ok((Value::$name(<$kind>::from_le_bytes(bytes)), rest))
        }};
    }
    match ty {
        ValueType::U8 => number!(U8, u8),
        ValueType::I8 => number!(I8, i8),
        ValueType::U16 => number!(U16, u16),
        ValueType::I16 => number!(I16, i16),
        ValueType::U32 => number!(U32, u32),
        ValueType::I32 => number!(I32, i32),
        ValueType::F32 => number!(F32, f32),
        ValueType::U64 => number!(U64, u64),
        ValueType::I64 => number!(I64, i64),
        ValueType::F64 => number!(F64, f64),
        ValueType::Bool => match raw {
            [0, rest @ ..] => Ok((Value::Bool(false), rest)),
            [1, rest @ ..] => Ok((Value::Bool(true), rest)),
            [] => Err(SHORT),
            _ => Err("a boolean is neither 0 nor 1"),
        },
        ValueType::String => split_string(raw),
        ValueType::Array => Err(NESTED),
    }
}

fn split_string(raw: &[u8]) -> Split<'_> {
    let (len, rest) = split(raw)?;
    let len = u64::from_le_bytes(len);
    if len > limits::STRING {
        return Err("a string is too long");
    }
    // At most `limits::STRING`, so it fits any usize.
    let (text, rest) = rest.split_at_checked(len as usize).ok_or(SHORT)?;
    let text = std::str::from_utf8(text).map_err(|_| "a string is not UTF-8")?;
    Ok((Value::String(text), rest))
}

fn parse_array(raw: &[u8]) -> Split<'_> {
    let (element, rest) = split(raw)?;
    let (len, rest) = split(rest)?;
    let element = ValueType::from_id(u32::from_le_bytes(element)).ok_or("the elements' type is unknown")?;
    let len = u64::from_le_bytes(len);
    if element == ValueType::Array {
        return Err(NESTED);
    }
    if len > limits::ARRAY {
        return Err("it has too many elements");
    }
    // At most `limits::ARRAY`, so it fits any usize.
    let array = Array { element, len: len as usize, raw: rest };
    match element.width() {
        // Any bytes are valid numbers.
        Some(width) if element != ValueType::Bool => {
            let (_, after) = rest.split_at_checked((len * width) as usize).ok_or(SHORT)?;
            Ok((Value::Array(array), after))
        }
        _ => {
            let mut after = rest;
            for _ in 0..len {
                after = split_value(element, after)?.1;
            }
            Ok((Value::Array(array), after))
        }
    }
}

/// Typed getters over key-values. A getter returns `None` for an absent key and an error for another type.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a>(pub &'a [Fact]);

impl<'a> Facts<'a> {
    /// The key-value with this key.
    pub fn get(&self, key: &str) -> Option<&'a Fact> {
        self.0.iter().find(|fact| fact.key == key)
    }

    /// The value of this key.
    pub fn value(&self, key: &str) -> Result<Option<Value<'a>>, GgufError> {
        self.get(key).map(Value::parse).transpose()
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        as_type: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        match as_type(&value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(GgufError::WrongType { key: key.to_owned(), found: describe(&value), expected }),
        }
    }

    /// An integer of any type whose value fits `u32`.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an integer from 0 to 4294967295", |value| value.as_u64()?.try_into().ok())
    }

    /// As [`Facts::u32`], with an error for an absent key.
    pub fn require_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.u32(key)?.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
    }

    /// A float of any type, rounded to `f32`.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "a float", Value::as_f32)
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array of any element type.
    pub fn array(&self, key: &str) -> Result<Option<Array<'a>>, GgufError> {
        self.typed(key, "an array", Value::as_array)
    }

    /// The strings of an array, borrowed: at most [`limits::ARRAY`] of at most [`limits::STRING`] bytes.
    pub fn string_array(
        &self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = &'a str> + use<'a>>, GgufError> {
        let strings = |value: &Value<'a>| value.as_array().filter(|array| array.element == ValueType::String);
        let array = self.typed(key, "an array of strings", strings)?;
        Ok(array.map(|array| array.iter().map(|value| value.as_str().unwrap_or_default())))
    }
}

fn describe(value: &Value<'_>) -> String {
    match value {
        Value::Array(array) => format!("an array of {} {:?}", array.len, array.element),
        Value::String(_) => "a string".to_owned(),
        number => format!("{number:?}"),
    }
}

impl Fact {
    fn new(key: &str, ty: ValueType, raw: Vec<u8>) -> Fact {
        Fact { key: key.to_owned(), ty: ty as u32, raw }
    }

    /// A `u32`.
    pub fn u32(key: &str, value: u32) -> Fact {
        Self::new(key, ValueType::U32, value.to_le_bytes().to_vec())
    }

    /// An `f32`.
    pub fn f32(key: &str, value: f32) -> Fact {
        Self::new(key, ValueType::F32, value.to_le_bytes().to_vec())
    }

    /// A boolean.
    pub fn bool(key: &str, value: bool) -> Fact {
        Self::new(key, ValueType::Bool, vec![value.into()])
    }

    /// A string.
    pub fn string(key: &str, value: &str) -> Fact {
        let mut raw = Vec::with_capacity(8 + value.len());
        push_string(&mut raw, value);
        Self::new(key, ValueType::String, raw)
    }

    /// An array of booleans.
    pub fn bools(key: &str, values: &[bool]) -> Fact {
        Self::array(key, ValueType::Bool, values, |raw, value| raw.push(u8::from(*value)))
    }

    /// An array of `u32`.
    pub fn u32s(key: &str, values: &[u32]) -> Fact {
        Self::array(key, ValueType::U32, values, |raw, value| raw.extend(value.to_le_bytes()))
    }

    /// An array of `i32`.
    pub fn i32s(key: &str, values: &[i32]) -> Fact {
        Self::array(key, ValueType::I32, values, |raw, value| raw.extend(value.to_le_bytes()))
    }

    /// An array of `f32`.
    pub fn f32s(key: &str, values: &[f32]) -> Fact {
        Self::array(key, ValueType::F32, values, |raw, value| raw.extend(value.to_le_bytes()))
    }

    /// An array of strings.
    pub fn strings(key: &str, values: &[&str]) -> Fact {
        Self::array(key, ValueType::String, values, |raw, value| push_string(raw, value))
    }

    fn array<T>(key: &str, element: ValueType, values: &[T], push: impl Fn(&mut Vec<u8>, &T)) -> Fact {
        let mut raw = (element as u32).to_le_bytes().to_vec();
        raw.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| push(&mut raw, value));
        Self::new(key, ValueType::Array, raw)
    }
}

pub(super) fn push_string(raw: &mut Vec<u8>, text: &str) {
    raw.extend((text.len() as u64).to_le_bytes());
    raw.extend(text.as_bytes());
}
