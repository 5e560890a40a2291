//! Values that templates create and change: lists, maps, namespaces.
//!
//! No value contains itself, directly or not, since that would leak memory: parts of a value are frozen ([`freeze`]),
//! and a namespace is never a part.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, State, Value};

use super::taint::Taint;

/// A list that a template can append to.
#[derive(Debug, Default)]
pub struct List(Mutex<Vec<Value>>);

impl List {
    /// A list of frozen items.
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

/// The value as a part of another: later changes of the value do not change the part.
pub fn freeze(value: &Value) -> Value {
    match value.downcast_object_ref::<List>() {
        Some(list) => Value::from(list.change(|items| items.clone())),
        None => value.clone(),
    }
}

/// Whether the value is the engine's `loop`, whose type the engine does not export.
pub fn is_loop(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Loop"))
}

/// Whether the value is data: not a loop, namespace, method, macro or function. Those may hold values that the meter
/// does not see, or themselves.
pub fn is_data(value: &Value) -> bool {
    match value.kind() {
        // Loops, macros and namespaces look like maps.
        ValueKind::Map => value.downcast_object_ref::<Dict>().is_some(),
        ValueKind::Plain => false,
        _ => true,
    }
}

/// Identity, for values of which at least one is not data. Such values are never compared by content.
pub fn same(a: &Value, b: &Value) -> bool {
    same_object::<Namespace>(a, b)
        .or_else(|| same_object::<Joiner>(a, b))
        .or_else(|| same_object::<Method>(a, b))
        // The engine compares its loops, macros and functions by names and counts alone.
        .unwrap_or_else(|| !is_data(a) && !is_data(b) && !a.is_kwargs() && !b.is_kwargs() && a == b)
}

/// Whether both are the same object; `None` where neither has the type.
pub fn same_object<T: 'static>(a: &Value, b: &Value) -> Option<bool> {
    match (a.downcast_object::<T>(), b.downcast_object::<T>()) {
        (None, None) => None,
        (a, b) => Some(a.zip(b).is_some_and(|(a, b)| Arc::ptr_eq(&a, &b))),
    }
}

/// A map. Keys may be tainted; look-ups use their plain form.
#[derive(Debug)]
pub struct Dict {
    entries: Vec<(Value, Value)>,
    places: BTreeMap<Value, usize>,
    taint: Taint,
}

impl Dict {
    /// A map of frozen values. The last of several equal keys wins, as in Python.
    pub fn of(pairs: impl IntoIterator<Item = (Value, Value)>, taint: Taint) -> Value {
        let mut dict = Dict { entries: Vec::new(), places: BTreeMap::new(), taint };
        for (key, value) in pairs {
            let plain = plain_key(&key, taint);
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

fn plain_key(key: &Value, taint: Taint) -> Value {
    match key.as_str() {
        Some(text) if taint.occurs_in(text) => Value::from(taint.plain(text)),
        _ => key.clone(),
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = self.places.get(&plain_key(key, self.taint))?;
        self.entries.get(*at).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.entries.iter().map(|(key, _)| key.clone()).collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }
}

/// A value with fields that a template sets. It never contains itself.
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

/// Returns nothing at the first call and its text at later ones.
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

/// A map's method as a value, as in `{% if schema.items %}`. In Python the method hides a key of the same name.
pub struct Method {
    pub of: DynObject,
    pub name: &'static str,
}

/// Without the map: writing it would recurse, and no meter has measured it.
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
