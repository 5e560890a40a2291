//! Positional and keyword arguments of a call.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

/// Most arguments of a call; all keyword arguments together are one.
pub const MAX_ARGUMENTS: usize = 64;

/// The arguments of a call.
#[derive(Debug)]
pub struct Arguments<'a> {
    /// Positional.
    pub values: &'a [Value],
    /// By keyword.
    pub named: Vec<(String, Value)>,
}

impl<'a> Arguments<'a> {
    /// Splits arguments; keyword arguments are the last value.
    pub fn new(args: &'a [Value]) -> Result<Arguments<'a>, Error> {
        match args.split_last() {
            Some((last, values)) if last.is_kwargs() => {
                let kwargs = Kwargs::try_from(last.clone())?;
                let named = kwargs.args().map(|name| Ok((name.to_owned(), kwargs.peek::<Value>(name)?)));
                Ok(Arguments { values, named: named.collect::<Result<_, Error>>()? })
            }
            _ => Ok(Arguments { values: args, named: Vec::new() }),
        }
    }

    /// Splits the arguments of a function with these parameters.
    pub fn of(args: &'a [Value], names: &[&str]) -> Result<Arguments<'a>, Error> {
        let arguments = Arguments::new(args)?;
        if arguments.values.len() > names.len() {
            return Err(Error::new(
                ErrorKind::TooManyArguments,
                format!("at most {} arguments are accepted", names.len()),
            ));
        }
        match arguments.named.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            Some((name, _)) => Err(Error::new(ErrorKind::TooManyArguments, format!("there is no argument `{name}`"))),
            None => Ok(arguments),
        }
    }

    /// The argument at a position or of a name.
    pub fn get(&self, at: usize, name: &str) -> Option<&Value> {
        let named = || self.named.iter().find(|(known, _)| known == name).map(|(_, value)| value);
        self.values.get(at).or_else(named)
    }

    /// A required argument.
    pub fn need(&self, at: usize, name: &str) -> Result<&Value, Error> {
        let missing = || Error::new(ErrorKind::MissingArgument, format!("the argument `{name}` is missing"));
        self.get(at, name).ok_or_else(missing)
    }

    /// A text; `none` counts as missing.
    pub fn text(&self, at: usize, name: &str) -> Result<Option<&str>, Error> {
        match self.get(at, name).filter(|value| !value.is_none()) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| wrong_type(name, "a text")),
        }
    }

    /// An integer; `none` counts as missing.
    pub fn integer(&self, at: usize, name: &str) -> Result<Option<i64>, Error> {
        match self.get(at, name).filter(|value| !value.is_none()) {
            None => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| wrong_type(name, "an integer")),
        }
    }

    /// Whether the argument is present and true.
    pub fn flag(&self, at: usize, name: &str) -> bool {
        self.get(at, name).is_some_and(Value::is_true)
    }
}

fn wrong_type(name: &str, kind: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the argument `{name}` is {kind}"))
}

/// An error of the template with this reason.
pub fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}
