//! Closes the objects of a JSON schema where the schema does not say whether further keys are admitted.
//!
//! JSON Schema admits any further key there, and a model that is admitted them invents keys until its token limit. The
//! closed schema is narrower, so whatever satisfies it satisfies the given one. Two things make this more than an added
//! `"additionalProperties": false`:
//!
//! - Several schemas may describe one object (`allOf`, `$ref` or `anyOf` beside `properties`). Each may name keys that
//!   another does not know, so none of them is closed alone: one further schema beside them admits the keys of all. What
//!   two of them say of the same key stays open below that key, for the same reason.
//! - A branch of `oneOf` must not match what another branch matches. Closed branches look disjoint where the given ones
//!   are not, so branches are closed only where the given ones exclude each other.
//!
//! An object of which no key is named (`{"type": "object"}`) is a map and stays open. A definition that is used in both
//! ways has a closed copy beside it. [`Guide`](super::Guide)s fall back on the given schema where the closed one admits
//! nothing.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use serde_json::{Map, Value, json};

/// Values of the given schema that are looked at, and of the closed one that are written, together: 32 for each value
/// that a schema may have. Beyond that the schema stays as it is. The schemas of a grammar share it.
pub(super) const MAX_WORK: usize = 32 * super::MAX_VALUES;
/// Bytes of a text that count as one value, so that at most 2 MiB of texts are written.
const TEXT_UNIT: usize = 16;
/// Levels down to which branches of `oneOf` are compared.
const COMPARED_LEVELS: usize = 8;
/// Keywords whose schemas describe the same value as the schema that they are part of.
const IN_PLACE: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];
/// Keywords that say which keys or items a value has. Of two schemas that have some, neither is closed alone.
const SHAPE: [&str; 9] = [
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "minProperties",
    "maxProperties",
    "items",
    "prefixItems",
    "additionalItems",
];
/// Keywords beside which a set of schemas that describe one object is left as it is: they speak of all keys at once.
const OF_ALL_KEYS: [&str; 6] = [
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
];

/// The schema with closed objects, or none where it stays as it is. What that takes of `work` is taken from it. Recurses once
/// for each level of the schema and each reference of a chain.
pub(super) fn closed(schema: &Value, work: &mut usize) -> Option<Value> {
    let Value::Object(root) = schema else { return None };
    let mut store = "x-closed".to_owned();
    while root.contains_key(&store) {
        store.push('_');
    }
    let odd_references = has_odd_references(schema);
    let mut closer =
        Closer { root: schema, store, odd_references, work: *work, numbers: HashMap::new(), left: VecDeque::new() };
    let document = closer.document();
    *work = closer.work;
    document.ok().filter(|document| document != schema)
}

/// Whether what the root says by this keyword is not kept as it is.
fn is_changed(keyword: &str) -> bool {
    SHAPE.iter().chain(&IN_PLACE).any(|changed| *changed == keyword)
}

/// Whether a reference leads to a part of the root that is not kept as it is.
fn has_odd_references(schema: &Value) -> bool {
    let mut left = vec![schema];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(items) => left.extend(items),
            Value::Object(fields) => {
                let target = fields.get("$ref").and_then(Value::as_str);
                let odd = |target: &str| {
                    let first = target.trim_start_matches(['#', '/']).split('/').next().unwrap_or_default();
                    first.is_empty() || is_changed(first)
                };
                if target.is_some_and(odd) {
                    return true;
                }
                left.extend(fields.values());
            }
            _ => {}
        }
    }
    false
}

/// The schema is not closed.
struct StaysOpen;

type Closed<T> = Result<T, StaysOpen>;

/// The keys that the schemas of one object name, each with what they say of it.
#[derive(Default)]
struct Keys<'s> {
    named: Map<String, Value>,
    schemas: HashMap<&'s str, Vec<&'s Value>>,
    visited: HashSet<*const Value>,
}

impl Keys<'_> {
    /// Whether one schema alone describes the values of this key.
    fn has_one_schema(&self, key: &str) -> bool {
        self.schemas.get(key).is_some_and(|schemas| schemas.len() == 1)
    }
}

struct Closer<'s> {
    root: &'s Value,
    /// Where the closed document keeps its closed copies: a keyword of the root that the given schema does not have.
    store: String,
    odd_references: bool,
    /// What is left of the work that may be done.
    work: usize,
    /// The closed copies by the schema that they are made of.
    numbers: HashMap<*const Value, usize>,
    /// Those that are not made yet.
    left: VecDeque<&'s Value>,
}

impl<'s> Closer<'s> {
    fn document(&mut self) -> Closed<Value> {
        let Value::Object(mut document) = self.alone(self.root)? else { return Err(StaysOpen) };
        // Definitions, above all: what stays open refers to them.
        for (keyword, given) in self.root.as_object().into_iter().flatten().filter(|(keyword, _)| !is_changed(keyword))
        {
            document.insert(keyword.clone(), self.copy(given)?);
        }
        let mut copies = Vec::new();
        while let Some(schema) = self.left.pop_front() {
            copies.push(self.alone(schema)?);
        }
        if !copies.is_empty() {
            document.insert(self.store.clone(), Value::Array(copies));
        }
        Ok(Value::Object(document))
    }

    fn spend(&mut self, work: usize) -> Closed<()> {
        let left = self.work.checked_sub(work);
        self.work = left.unwrap_or(0);
        left.map(|_| ()).ok_or(StaysOpen)
    }

    fn copy(&mut self, value: &Value) -> Closed<Value> {
        self.spend(1)?;
        Ok(match value {
            Value::String(text) => {
                self.spend(text.len() / TEXT_UNIT)?;
                Value::String(text.clone())
            }
            Value::Array(items) => items.iter().map(|item| self.copy(item)).collect::<Closed<_>>()?,
            Value::Object(fields) => self.fields(fields, |this, _, value| this.copy(value))?,
            plain => plain.clone(),
        })
    }

    /// The same keys with other values.
    fn fields<'v>(
        &mut self,
        fields: &'v Map<String, Value>,
        mut change: impl FnMut(&mut Self, &'v str, &'v Value) -> Closed<Value>,
    ) -> Closed<Value> {
        let mut changed = Map::new();
        for (key, value) in fields {
            self.spend(1 + key.len() / TEXT_UNIT)?;
            changed.insert(key.clone(), change(self, key, value)?);
        }
        Ok(Value::Object(changed))
    }

    /// A reference to the closed copy of a schema.
    fn reference(&mut self, schema: &'s Value) -> Value {
        let next = self.numbers.len();
        let number = *self.numbers.entry(schema).or_insert_with(|| {
            self.left.push_back(schema);
            next
        });
        json!({"$ref": format!("#/{}/{number}", self.store)})
    }

    /// What a reference leads to, by llguidance's rules: names as they are written, nothing escaped.
    fn target(&self, reference: &Value) -> Option<&'s Value> {
        let reference = reference.as_str()?;
        let step = |value: &'s Value, segment: &str| match value {
            Value::Array(items) => items.get(segment.parse::<usize>().ok()?),
            value => value.get(segment),
        };
        match reference.strip_prefix("#/").filter(|path| !path.is_empty()) {
            Some(path) => path.split('/').try_fold(self.root, step),
            None => matches!(reference, "#" | "#/").then_some(self.root),
        }
    }

    /// Closes a schema that describes its values alone.
    fn alone(&mut self, schema: &'s Value) -> Closed<Value> {
        let Value::Object(fields) = schema else { return self.copy(schema) };
        if fields.contains_key("const") || fields.contains_key("enum") {
            return self.copy(schema);
        }
        match self.parts(fields) {
            0 => self.copy(schema),
            1 if !fields.contains_key("oneOf") => self.one_part(fields),
            1 if self.branches_exclude_each_other(fields)? => self.one_part(fields),
            _ => self.several_parts(schema),
        }
    }

    fn schemas(&mut self, schemas: &'s Value) -> Closed<Value> {
        match schemas {
            Value::Array(list) => list.iter().map(|schema| self.alone(schema)).collect(),
            schema => self.alone(schema),
        }
    }

    /// How many schemas describe the shape of a value together.
    fn parts(&self, fields: &Map<String, Value>) -> usize {
        let shaped = |schema: &&Value| {
            let fields = schema.as_object();
            fields.is_some_and(|fields| SHAPE.iter().chain(&IN_PLACE).any(|keyword| fields.contains_key(*keyword)))
        };
        let all_of = fields.get("allOf").and_then(Value::as_array).map_or(0, |all| all.iter().filter(shaped).count());
        let others = ["$ref", "anyOf", "oneOf"].iter().filter(|keyword| fields.contains_key(**keyword)).count();
        let own = SHAPE.iter().any(|keyword| fields.contains_key(*keyword));
        usize::from(own) + all_of + others
    }

    /// Closes what a single keyword, or the schema's own keywords alone, say of the shape.
    fn one_part(&mut self, fields: &'s Map<String, Value>) -> Closed<Value> {
        // What a pattern says of a named key describes the same value.
        let merged = fields.contains_key("patternProperties") && fields.contains_key("properties");
        let changed = self.fields(fields, |this, keyword, value| match (keyword, value) {
            ("properties" | "patternProperties", Value::Object(schemas)) if !merged => {
                this.fields(schemas, |this, _, schema| this.alone(schema))
            }
            ("additionalProperties" | "items" | "prefixItems" | "additionalItems", schemas) => this.schemas(schemas),
            ("allOf" | "anyOf" | "oneOf", schemas) => this.schemas(schemas),
            ("$ref", reference) => match this.target(reference) {
                Some(target) => Ok(this.reference(target)["$ref"].take()),
                None => Err(StaysOpen),
            },
            (_, value) => this.copy(value),
        })?;
        let Value::Object(mut changed) = changed else { return Err(StaysOpen) };
        if let Some(branches) = changed.remove("oneOf") {
            changed.insert("anyOf".to_owned(), branches);
        }
        close(&mut changed);
        Ok(Value::Object(changed))
    }

    /// Closes a schema whose parts describe one value together: with a schema beside them that admits the keys of all.
    fn several_parts(&mut self, schema: &'s Value) -> Closed<Value> {
        if self.odd_references {
            return Err(StaysOpen);
        }
        let mut keys = Keys::default();
        if !self.keys(schema, &mut keys)? || keys.named.is_empty() {
            return self.copy(schema);
        }
        keys.visited.clear();
        let part = self.part(schema, &mut keys, false)?;
        Ok(json!({"allOf": [part, {"properties": keys.named, "additionalProperties": false}]}))
    }

    /// Finds the keys that a schema and all that describes the same value name; false where a schema speaks of all keys.
    fn keys(&mut self, schema: &'s Value, keys: &mut Keys<'s>) -> Closed<bool> {
        self.spend(1)?;
        let Value::Object(fields) = schema else { return Ok(true) };
        if !keys.visited.insert(schema) {
            return Ok(true);
        }
        let mut listed =
            fields.get("const").into_iter().chain(fields.get("enum").and_then(Value::as_array).into_iter().flatten());
        if OF_ALL_KEYS.iter().any(|keyword| fields.contains_key(*keyword)) || listed.any(Value::is_object) {
            return Ok(false);
        }
        for (key, schema) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.spend(1)?;
            keys.named.insert(key.clone(), Value::Bool(true));
            keys.schemas.entry(key.as_str()).or_default().push(schema);
        }
        for key in required(fields) {
            keys.named.insert(key.to_owned(), Value::Bool(true));
        }
        if let Some(reference) = fields.get("$ref") {
            let Some(target) = self.target(reference) else { return Err(StaysOpen) };
            if !self.keys(target, keys)? {
                return Ok(false);
            }
        }
        let lists = ["allOf", "anyOf", "oneOf"].iter().filter_map(|keyword| fields.get(*keyword)?.as_array());
        for schema in lists.flatten() {
            if !self.keys(schema, keys)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One of the schemas that describe an object together, with what is below keys that it alone names closed.
    /// References are written out; `inlined` tells that the schema is written out in the place of one, so that what it
    /// refers to may come again below.
    fn part(&mut self, schema: &'s Value, keys: &mut Keys<'s>, inlined: bool) -> Closed<Value> {
        let Value::Object(fields) = schema else { return self.copy(schema) };
        let mut targets = Vec::new();
        let changed = self.fields(fields, |this, keyword, value| match (keyword, value) {
            ("properties", Value::Object(schemas)) => {
                this.fields(schemas, |this, key, schema| match (keys.has_one_schema(key), inlined) {
                    (true, true) if schema.is_object() => Ok(this.reference(schema)),
                    (true, false) => this.alone(schema),
                    _ => this.copy(schema),
                })
            }
            ("allOf" | "anyOf", Value::Array(schemas)) => {
                schemas.iter().map(|schema| this.part(schema, keys, inlined)).collect()
            }
            ("$ref", reference) => {
                if let Some(target) = this.target(reference).filter(|target| keys.visited.insert(*target)) {
                    targets.push(this.part(target, keys, true)?);
                }
                this.copy(reference)
            }
            (_, value) => this.copy(value),
        })?;
        let Value::Object(mut changed) = changed else { return Err(StaysOpen) };
        match targets.pop() {
            None => Ok(Value::Object(changed)),
            Some(target) => {
                changed.remove("$ref");
                Ok(json!({"allOf": [target, changed]}))
            }
        }
    }

    /// Whether no value matches two of the branches of `oneOf`, as far as can be told.
    fn branches_exclude_each_other(&mut self, fields: &'s Map<String, Value>) -> Closed<bool> {
        let Some(branches) = fields.get("oneOf").and_then(Value::as_array) else { return Ok(false) };
        for (at, first) in branches.iter().enumerate() {
            for second in branches.iter().skip(at + 1) {
                if !self.exclude_each_other(first, second, COMPARED_LEVELS)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn exclude_each_other(&mut self, first: &'s Value, second: &'s Value, levels: usize) -> Closed<bool> {
        self.spend(1)?;
        let (Some(first), Some(second)) = (self.resolved(first)?, self.resolved(second)?) else { return Ok(false) };
        let lists = [(types(first), types(second)), (texts(first), texts(second))];
        let differ = |(one, other): (Option<Vec<&str>>, Option<Vec<&str>>)| {
            let (Some(one), Some(other)) = (one, other) else { return Ok(false) };
            self.spend(one.len() + other.len())?;
            let other: HashSet<&str> = other.into_iter().collect();
            Ok(!one.iter().any(|value| other.contains(value)))
        };
        for differs in lists.map(differ) {
            if differs? {
                return Ok(true);
            }
        }
        // A required key is there only where the value is an object.
        let is_object = [first, second].iter().any(|fields| types(fields) == Some(vec!["object"]));
        if levels == 0 || !is_object {
            return Ok(false);
        }
        // Each key once, however often it is named.
        let keys: BTreeSet<&str> = required(first).chain(required(second)).collect();
        self.spend(required(first).chain(required(second)).count())?;
        for key in keys {
            let of_key = |fields: &'s Map<String, Value>| fields.get("properties").and_then(|all| all.get(key));
            if let (Some(first), Some(second)) = (of_key(first), of_key(second))
                && self.exclude_each_other(first, second, levels - 1)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The schema that a chain of references leads to.
    fn resolved(&mut self, mut schema: &'s Value) -> Closed<Option<&'s Map<String, Value>>> {
        while let Some(reference) = schema.get("$ref") {
            self.spend(1)?;
            let Some(target) = self.target(reference) else { return Ok(None) };
            schema = target;
        }
        Ok(schema.as_object())
    }
}

fn required(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    fields.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The types that a schema admits, where it says so; an integer is a number.
fn types(fields: &Map<String, Value>) -> Option<Vec<&str>> {
    let named = match fields.get("type")? {
        Value::Array(types) => types.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?,
        one => vec![one.as_str()?],
    };
    Some(named.into_iter().map(|name| if name == "integer" { "number" } else { name }).collect())
}

/// The texts that a schema admits, where it lists texts alone.
fn texts(fields: &Map<String, Value>) -> Option<Vec<&str>> {
    match (fields.get("const"), fields.get("enum")) {
        (Some(text), _) => Some(vec![text.as_str()?]),
        (None, listed) => listed?.as_array()?.iter().map(Value::as_str).collect(),
    }
}

/// Closes an object that names keys and does not speak of others. Required keys are named.
fn close(fields: &mut Map<String, Value>) {
    let names = ["properties", "patternProperties", "required"].iter().any(|keyword| fields.contains_key(*keyword));
    if !names || fields.contains_key("additionalProperties") {
        return;
    }
    let unnamed: Vec<String> = required(fields)
        .filter(|key| fields.get("properties").is_none_or(|named| named.get(key).is_none()))
        .map(str::to_owned)
        .collect();
    let least = fields.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
    let is_empty = |keyword: &str| fields.get(keyword).and_then(Value::as_object).is_none_or(Map::is_empty);
    // One key may be any of the named ones; of more than the required ones some may have to be keys without a name.
    let satisfied = required(fields).count() as u64 >= least;
    if !satisfied && (least > 1 || is_empty("properties") && is_empty("patternProperties")) {
        return;
    }
    if !unnamed.is_empty()
        && let Value::Object(named) = fields.entry("properties").or_insert_with(|| json!({}))
    {
        named.extend(unnamed.into_iter().map(|key| (key, Value::Bool(true))));
    }
    fields.insert("additionalProperties".to_owned(), Value::Bool(false));
}
