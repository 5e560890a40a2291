//! Values of arguments: layers of a stage, and variables of a chat template.

use std::str::FromStr;

use swarmllm_core::base::LayerRange;

/// A variable of a chat template, `NAME=JSON`.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateArg {
    pub name: String,
    pub value: serde_json::Value,
}

impl FromStr for TemplateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write it as NAME=JSON")?;
        Ok(Self { name: name.to_owned(), value: json_or_text(value)? })
    }
}

/// Reads JSON or text. Misspelt JSON is an error, because a template takes any text for true.
fn json_or_text(value: &str) -> Result<serde_json::Value, String> {
    let cause = match serde_json::from_str(value) {
        Ok(json) => return Ok(json),
        Err(cause) => cause,
    };
    let word = match value {
        "None" => Some("null"),
        other => ["true", "false", "null"].into_iter().find(|word| other.eq_ignore_ascii_case(word)),
    };
    match word {
        Some(word) => Err(format!("JSON writes `{value}` as `{word}`; write the text as `\"{value}\"`")),
        None if value.trim_start().starts_with(['{', '[', '"']) => Err(format!(
            "it begins like JSON and is not valid JSON: {cause}; quote JSON with single quotes for the shell"
        )),
        None => Ok(value.into()),
    }
}

/// Layers of a stage, `A..B` or `A..B,head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageArg {
    pub layers: LayerRange,
    pub head: bool,
}

impl FromStr for StageArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (range, head) = match text.split_once(',') {
            Some((range, "head")) => (range, true),
            Some((_, other)) => return Err(format!("`{other}` is not `head`")),
            None => (text, false),
        };
        let (start, end) = range.split_once("..").ok_or("write layers as A..B, B excluded, like 0..10")?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("`{text}` is not a layer's number"));
        let layers = LayerRange::new(number(start)?, number(end)?);
        if layers.is_empty() {
            return Err("the range is empty: B is excluded, 0..10 are the layers 0 to 9".to_owned());
        }
        Ok(Self { layers, head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_layers_are_read() {
        let layers = LayerRange::new(0, 10);
        assert_eq!("0..10".parse::<StageArg>(), Ok(StageArg { layers, head: false }));
        assert_eq!("0..10,head".parse::<StageArg>(), Ok(StageArg { layers, head: true }));
        for bad in ["", "3", "3..3", "4..3", "a..b", "0..10,tail", "0..10,", "-1..2", "0..99999999999"] {
            assert!(bad.parse::<StageArg>().is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_of_a_template_are_json_or_text() {
        let value = |text: &str| text.parse::<TemplateArg>().map(|arg| arg.value);
        assert_eq!(value("depth=3"), Ok(3.into()));
        assert_eq!(value("effort=high"), Ok("high".into()));
        assert_eq!(value("a=b=c"), Ok("b=c".into()));
        assert_eq!(value("list=[true]"), Ok(vec![true].into()));
        assert_eq!((value("effort=none"), value("quoted=\"True\"")), (Ok("none".into()), Ok("True".into())));
        assert!("thinking".parse::<TemplateArg>().is_err() && "=1".parse::<TemplateArg>().is_err());
    }
}
