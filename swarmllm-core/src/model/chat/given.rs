//! The arguments of a call, by place and by name.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

/// Most arguments of a call by place; those by name are one.
pub const MAX_ARGUMENTS: usize = 64;

/// Arguments of a call, without what it is called on.
#[derive(Debug)]
pub struct Given<'a> {
    /// By place.
    pub values: &'a [Value],
    /// By name.
    pub named: Vec<(String, Value)>,
}

impl<'a> Given<'a> {
    /// Takes arguments apart: those by name are the last value.
    pub fn new(args: &'a [Value]) -> Result<Given<'a>, Error> {
        match args.split_last() {
            Some((last, values)) if last.is_kwargs() => {
                let kwargs = Kwargs::try_from(last.clone())?;
                let named = kwargs.args().map(|name| Ok((name.to_owned(), kwargs.peek::<Value>(name)?)));
                Ok(Given { values, named: named.collect::<Result<_, Error>>()? })
            }
            _ => Ok(Given { values: args, named: Vec::new() }),
        }
    }

    /// Takes arguments apart that have these names, in this order.
    pub fn of(args: &'a [Value], names: &[&str]) -> Result<Given<'a>, Error> {
        let given = Given::new(args)?;
        if given.values.len() > names.len() {
            return Err(Error::new(ErrorKind::TooManyArguments, format!("at most {} are taken", names.len())));
        }
        match given.named.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            Some((name, _)) => Err(Error::new(ErrorKind::TooManyArguments, format!("there is no argument `{name}`"))),
            None => Ok(given),
        }
    }

    /// The argument at this place or of this name.
    pub fn get(&self, at: usize, name: &str) -> Option<&Value> {
        let named = || self.named.iter().find(|(known, _)| known == name).map(|(_, value)| value);
        self.values.get(at).or_else(named)
    }

    /// The same; an error where there is none.
    pub fn need(&self, at: usize, name: &str) -> Result<&Value, Error> {
        let missing = || Error::new(ErrorKind::MissingArgument, format!("the argument `{name}` is missing"));
        self.get(at, name).ok_or_else(missing)
    }

    /// A text; `none` counts as not given.
    pub fn text(&self, at: usize, name: &str) -> Result<Option<&str>, Error> {
        match self.get(at, name).filter(|value| !value.is_none()) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| wrong(name, "a text")),
        }
    }

    /// A whole number; `none` counts as not given.
    pub fn whole(&self, at: usize, name: &str) -> Result<Option<i64>, Error> {
        match self.get(at, name).filter(|value| !value.is_none()) {
            None => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| wrong(name, "a whole number")),
        }
    }

    /// Whether it is given and true.
    pub fn flag(&self, at: usize, name: &str) -> bool {
        self.get(at, name).is_some_and(Value::is_true)
    }
}

fn wrong(name: &str, kind: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the argument `{name}` is {kind}"))
}

/// An error of the template's with this reason.
pub fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}
