//! Closes the objects of a JSON schema that do not specify `additionalProperties`.
//!
//! JSON Schema allows any further key there, and a model would invent keys until its token limit. The closed schema is
//! narrower, so its instances satisfy the given schema. Two cases need more than an added `"additionalProperties": false`:
//!
//! - Several schemas may describe one object (`allOf`, `$ref` or `anyOf` beside `properties`). Each may name keys that
//!   another does not, so none of them is closed alone: one more schema beside them allows the keys of all. A key that two
//!   of them describe stays open below, for the same reason.
//! - A value must not match two branches of `oneOf`. Closed branches may be disjoint although the given ones are not, so
//!   branches are closed only if the given ones exclude each other.
//!
//! An object without named keys (`{"type": "object"}`) is a map and stays open. A definition that is used open and closed
//! gets a closed copy. A [`Guide`](super::Guide) uses the given schema if the closed one admits nothing.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use serde_json::{Map, Value, json};

/// Budget of values read from the given schema and written to the closed one, together: 32 for each value that a schema may
/// have. A schema that exceeds the budget is not closed. The schemas of a grammar share one budget.
pub(super) const MAX_WORK: usize = 32 * super::MAX_VALUES;
/// Bytes of a string that count as one value, so that at most 2 MiB of strings are written.
const TEXT_UNIT: usize = 16;
/// Depth to which branches of `oneOf` are compared.
const COMPARED_LEVELS: usize = 8;
/// Keywords whose subschemas describe the same value as the schema itself.
const APPLICATORS: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];
/// Keywords that describe a value's keys or items. If two schemas of a value have some, neither is closed alone.
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
/// Keywords that apply to all keys at once. A set of schemas of one object that has such a keyword stays open.
const ALL_KEYS: [&str; 6] = [
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
];

/// The schema with closed objects; `None` if it stays as it is. Subtracts its cost from `work`. Recurses once for each
/// level of the schema and each reference of a chain.
pub(super) fn closed(schema: &Value, work: &mut usize) -> Option<Value> {
    let Value::Object(root) = schema else { return None };
    let mut store = "x-closed".to_owned();
    while root.contains_key(&store) {
        store.push('_');
    }
    let references_changed_parts = references_changed_parts(schema);
    let mut closer = Closer {
        root: schema,
        store,
        references_changed_parts,
        work: *work,
        copies: HashMap::new(),
        pending: VecDeque::new(),
    };
    let document = closer.document();
    *work = closer.work;
    document.ok().filter(|document| document != schema)
}

/// Whether the closed document changes the root's value of this keyword.
fn is_changed(keyword: &str) -> bool {
    SHAPE.iter().chain(&APPLICATORS).any(|changed| *changed == keyword)
}

/// Whether a reference points to a part of the root that is changed.
fn references_changed_parts(schema: &Value) -> bool {
    let mut pending = vec![schema];
    while let Some(value) = pending.pop() {
        match value {
            Value::Array(items) => pending.extend(items),
            Value::Object(fields) => {
                let target = fields.get("$ref").and_then(Value::as_str);
                let odd = |target: &str| {
                    let first = target.trim_start_matches(['#', '/']).split('/').next().unwrap_or_default();
                    first.is_empty() || is_changed(first)
                };
                if target.is_some_and(odd) {
                    return true;
                }
                pending.extend(fields.values());
            }
            _ => {}
        }
    }
    false
}

/// The schema cannot be closed.
struct StaysOpen;

type ClosedResult<T> = Result<T, StaysOpen>;

/// The keys that the schemas of one object name, each with its schemas.
#[derive(Default)]
struct Keys<'s> {
    named: Map<String, Value>,
    schemas: HashMap<&'s str, Vec<&'s Value>>,
    visited: HashSet<*const Value>,
}

impl Keys<'_> {
    /// Whether exactly one schema describes the values of this key.
    fn has_one_schema(&self, key: &str) -> bool {
        self.schemas.get(key).is_some_and(|schemas| schemas.len() == 1)
    }
}

struct Closer<'s> {
    root: &'s Value,
    /// Keyword of the closed copies in the root; unused in the given schema.
    store: String,
    references_changed_parts: bool,
    /// Remaining budget.
    work: usize,
    /// Indices of the closed copies by their given schema.
    copies: HashMap<*const Value, usize>,
    /// Schemas whose closed copies are still to be written.
    pending: VecDeque<&'s Value>,
}

impl<'s> Closer<'s> {
    fn document(&mut self) -> ClosedResult<Value> {
        let Value::Object(mut document) = self.close_single(self.root)? else { return Err(StaysOpen) };
        // Above all definitions, to which open schemas refer.
        for (keyword, given) in self.root.as_object().into_iter().flatten().filter(|(keyword, _)| !is_changed(keyword))
        {
            document.insert(keyword.clone(), self.copy(given)?);
        }
        let mut copies = Vec::new();
        while let Some(schema) = self.pending.pop_front() {
            copies.push(self.close_single(schema)?);
        }
        if !copies.is_empty() {
            document.insert(self.store.clone(), Value::Array(copies));
        }
        Ok(Value::Object(document))
    }

    fn spend(&mut self, work: usize) -> ClosedResult<()> {
        let remaining = self.work.checked_sub(work);
        self.work = remaining.unwrap_or(0);
        remaining.map(|_| ()).ok_or(StaysOpen)
    }

    fn copy(&mut self, value: &Value) -> ClosedResult<Value> {
        self.spend(1)?;
        Ok(match value {
            Value::String(text) => {
                self.spend(text.len() / TEXT_UNIT)?;
                Value::String(text.clone())
            }
            Value::Array(items) => items.iter().map(|item| self.copy(item)).collect::<ClosedResult<_>>()?,
            Value::Object(fields) => self.fields(fields, |this, _, value| this.copy(value))?,
            plain => plain.clone(),
        })
    }

    /// The fields with changed values.
    fn fields<'v>(
        &mut self,
        fields: &'v Map<String, Value>,
        mut change: impl FnMut(&mut Self, &'v str, &'v Value) -> ClosedResult<Value>,
    ) -> ClosedResult<Value> {
        let mut changed = Map::new();
        for (key, value) in fields {
            self.spend(1 + key.len() / TEXT_UNIT)?;
            changed.insert(key.clone(), change(self, key, value)?);
        }
        Ok(Value::Object(changed))
    }

    /// A reference to the closed copy of a schema.
    fn reference(&mut self, schema: &'s Value) -> Value {
        let next = self.copies.len();
        let number = *self.copies.entry(schema).or_insert_with(|| {
            self.pending.push_back(schema);
            next
        });
        json!({"$ref": format!("#/{}/{number}", self.store)})
    }

    /// Target of a reference by llguidance's rules: names are literal, without escapes.
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

    /// Closes a schema that is its values' only schema.
    fn close_single(&mut self, schema: &'s Value) -> ClosedResult<Value> {
        let Value::Object(fields) = schema else { return self.copy(schema) };
        if fields.contains_key("const") || fields.contains_key("enum") {
            return self.copy(schema);
        }
        match self.parts(fields) {
            0 => self.copy(schema),
            1 if !fields.contains_key("oneOf") => self.close_one_part(fields),
            1 if self.branches_exclude_each_other(fields)? => self.close_one_part(fields),
            _ => self.close_several_parts(schema),
        }
    }

    fn schemas(&mut self, schemas: &'s Value) -> ClosedResult<Value> {
        match schemas {
            Value::Array(list) => list.iter().map(|schema| self.close_single(schema)).collect(),
            schema => self.close_single(schema),
        }
    }

    /// Number of schemas that together describe the shape of a value.
    fn parts(&self, fields: &Map<String, Value>) -> usize {
        let shaped = |schema: &&Value| {
            let fields = schema.as_object();
            fields.is_some_and(|fields| SHAPE.iter().chain(&APPLICATORS).any(|keyword| fields.contains_key(*keyword)))
        };
        let all_of = fields.get("allOf").and_then(Value::as_array).map_or(0, |all| all.iter().filter(shaped).count());
        let others = ["$ref", "anyOf", "oneOf"].iter().filter(|keyword| fields.contains_key(**keyword)).count();
        let own = SHAPE.iter().any(|keyword| fields.contains_key(*keyword));
        usize::from(own) + all_of + others
    }

    /// Closes a schema whose shape one keyword, or only its own keywords, describe.
    fn close_one_part(&mut self, fields: &'s Map<String, Value>) -> ClosedResult<Value> {
        // A pattern may describe the value of a named key too.
        let merged = fields.contains_key("patternProperties") && fields.contains_key("properties");
        let changed = self.fields(fields, |this, keyword, value| match (keyword, value) {
            ("properties" | "patternProperties", Value::Object(schemas)) if !merged => {
                this.fields(schemas, |this, _, schema| this.close_single(schema))
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

    /// Closes a schema whose parts together describe one value, by one more schema that allows the keys of all parts.
    fn close_several_parts(&mut self, schema: &'s Value) -> ClosedResult<Value> {
        if self.references_changed_parts {
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

    /// Collects the keys of a schema and of all other schemas of the same value; false if a keyword applies to all keys.
    fn keys(&mut self, schema: &'s Value, keys: &mut Keys<'s>) -> ClosedResult<bool> {
        self.spend(1)?;
        let Value::Object(fields) = schema else { return Ok(true) };
        if !keys.visited.insert(schema) {
            return Ok(true);
        }
        let mut listed =
            fields.get("const").into_iter().chain(fields.get("enum").and_then(Value::as_array).into_iter().flatten());
        if ALL_KEYS.iter().any(|keyword| fields.contains_key(*keyword)) || listed.any(Value::is_object) {
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

    /// One of several schemas of an object, closed below the keys that only it names. References are inlined; `inlined`
    /// says that the schema replaces a reference, so that its own references may recur below.
    fn part(&mut self, schema: &'s Value, keys: &mut Keys<'s>, inlined: bool) -> ClosedResult<Value> {
        let Value::Object(fields) = schema else { return self.copy(schema) };
        let mut targets = Vec::new();
        let changed = self.fields(fields, |this, keyword, value| match (keyword, value) {
            ("properties", Value::Object(schemas)) => {
                this.fields(schemas, |this, key, schema| match (keys.has_one_schema(key), inlined) {
                    (true, true) if schema.is_object() => Ok(this.reference(schema)),
                    (true, false) => this.close_single(schema),
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

    /// Whether the branches of `oneOf` are provably disjoint.
    fn branches_exclude_each_other(&mut self, fields: &'s Map<String, Value>) -> ClosedResult<bool> {
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

    fn exclude_each_other(&mut self, first: &'s Value, second: &'s Value, levels: usize) -> ClosedResult<bool> {
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
        // Required keys apply only to objects.
        let is_object = [first, second].iter().any(|fields| types(fields) == Some(vec!["object"]));
        if levels == 0 || !is_object {
            return Ok(false);
        }
        // A set, because a key may be listed repeatedly.
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

    /// The schema at the end of a chain of references.
    fn resolved(&mut self, mut schema: &'s Value) -> ClosedResult<Option<&'s Map<String, Value>>> {
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

/// The types that a schema lists, with `integer` as `number`.
fn types(fields: &Map<String, Value>) -> Option<Vec<&str>> {
    let named = match fields.get("type")? {
        Value::Array(types) => types.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?,
        one => vec![one.as_str()?],
    };
    Some(named.into_iter().map(|name| if name == "integer" { "number" } else { name }).collect())
}

/// The strings that a schema lists, if it lists only strings.
fn texts(fields: &Map<String, Value>) -> Option<Vec<&str>> {
    match (fields.get("const"), fields.get("enum")) {
        (Some(text), _) => Some(vec![text.as_str()?]),
        (None, listed) => listed?.as_array()?.iter().map(Value::as_str).collect(),
    }
}

/// Closes an object that names keys and has no `additionalProperties`. Required keys become named.
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
    // One key may be any named key; more keys than the required ones may have to include keys without a name.
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
