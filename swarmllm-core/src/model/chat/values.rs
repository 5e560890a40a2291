//! Values that templates make and change: lists, maps, namespaces.
//!
//! None of them ever holds itself, directly or not, for that would leak: what goes into another value is frozen first
//! ([`freeze`]), and namespaces go into none.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, State, Value};

use super::shadow::Shadow;

/// A list that a template can append to.
#[derive(Debug, Default)]
pub struct List(Mutex<Vec<Value>>);

impl List {
    /// A list of items that are frozen.
    pub fn of(items: Vec<Value>) -> Value {
        Value::from_object(List(Mutex::new(items)))
    }

    /// Changes the list.
    pub fn change<T>(&self, change: impl FnOnce(&mut Vec<Value>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.change(|items| items.get(key.as_usize()?).cloned())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.change(|items| items.len()))
    }
}

/// The value as a part of another: what is changed later does not change there.
pub fn freeze(value: &Value) -> Value {
    match value.downcast_object_ref::<List>() {
        Some(list) => Value::from(list.change(|items| items.clone())),
        None => value.clone(),
    }
}

/// Whether the value is the engine's own about a loop; the engine does not export the type.
pub fn is_loop(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Loop"))
}

/// Whether the value is data, and no loop, namespace, method, macro or function. What is none may hold other values
/// that the meter does not see, or itself.
pub fn is_data(value: &Value) -> bool {
    match value.kind() {
        // Loops, macros and namespaces look like maps.
        ValueKind::Map => value.downcast_object_ref::<Dict>().is_some(),
        ValueKind::Plain => false,
        _ => true,
    }
}

/// Whether both are the same, for values of which one is no data. They are never compared by what they hold.
pub fn same(a: &Value, b: &Value) -> bool {
    same_object::<Namespace>(a, b)
        .or_else(|| same_object::<Joiner>(a, b))
        .or_else(|| same_object::<Method>(a, b))
        // The engine's own (loops, macros, functions) hold nothing but their names and counts.
        .unwrap_or_else(|| !is_data(a) && !is_data(b) && !a.is_kwargs() && !b.is_kwargs() && a == b)
}

/// Whether both are the same object, if one is of the type.
pub fn same_object<T: 'static>(a: &Value, b: &Value) -> Option<bool> {
    match (a.downcast_object::<T>(), b.downcast_object::<T>()) {
        (None, None) => None,
        (a, b) => Some(a.zip(b).is_some_and(|(a, b)| Arc::ptr_eq(&a, &b))),
    }
}

/// A map. Its keys may be shadows; they are found by their plain form.
#[derive(Debug)]
pub struct Dict {
    entries: Vec<(Value, Value)>,
    places: BTreeMap<Value, usize>,
    shadow: Shadow,
}

impl Dict {
    /// A map of frozen values. Where a key comes twice the last value counts, as in Python.
    pub fn of(pairs: impl IntoIterator<Item = (Value, Value)>, shadow: Shadow) -> Value {
        let mut dict = Dict { entries: Vec::new(), places: BTreeMap::new(), shadow };
        for (key, value) in pairs {
            let plain = plain_key(&key, shadow);
            let known = dict.places.get(&plain).and_then(|at| dict.entries.get_mut(*at));
            match known {
                Some((_, old)) => *old = value,
                None => {
                    dict.places.insert(plain, dict.entries.len());
                    dict.entries.push((key, value));
                }
            }
        }
        Value::from_object(dict)
    }
}

fn plain_key(key: &Value, shadow: Shadow) -> Value {
    match key.as_str() {
        Some(text) if shadow.marks(text) => Value::from(shadow.plain(text)),
        _ => key.clone(),
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = self.places.get(&plain_key(key, self.shadow))?;
        self.entries.get(*at).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.entries.iter().map(|(key, _)| key.clone()).collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }
}

/// A value whose fields a template may set. It never holds itself: that would leak.
#[derive(Debug, Default)]
pub struct Namespace(Mutex<BTreeMap<String, Value>>);

impl Namespace {
    /// Sets a field.
    pub fn set(&self, name: &str, value: Value) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), value);
    }
}

impl Object for Namespace {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key.as_str()?).cloned()
    }
}

/// What gives nothing when it is first called, and its text from then on.
pub struct Joiner {
    pub text: Value,
    pub used: AtomicBool,
}

impl fmt::Debug for Joiner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("<joiner>")
    }
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        Ok(if self.used.swap(true, Ordering::Relaxed) { self.text.clone() } else { Value::from("") })
    }
}

/// A map's method that is not called, as in `{% if schema.items %}`. Python finds it before an item of that name.
pub struct Method {
    pub of: DynObject,
    pub name: &'static str,
}

/// Without the map: writing it would recurse, and no meter has looked it over.
impl fmt::Debug for Method {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "<method {}>", self.name)
    }
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        Value::from(self.of.clone()).call_method(state, self.name, args)
    }
}
