//! Translates errors of the library, which name fields and settings, to the options of the command line.

use swarmllm_core::base::{ErrorKind, Fault};

/// Fields of a request and their options.
const FIELDS: [(&str, &str); 15] = [
    ("chat_template", "--chat-template"),
    ("chat_template_kwargs", "--template-arg"),
    ("constraint", "--json-schema"),
    ("documents", "--documents"),
    ("draft", "--draft"),
    ("exact", "--exact"),
    ("max_tokens", "--max-tokens"),
    ("seed", "--seed"),
    ("standby", "--standby"),
    ("stop", "--stop"),
    ("temperature", "--temperature"),
    ("tools", "--tools"),
    ("top_k", "--top-k"),
    ("top_p", "--top-p"),
    ("wire", "--wire"),
];
/// Fields that are set by a message or a line of stdin.
const TEXTS: [(&str, &str); 2] = [("messages", "the conversation"), ("prompt", "the text")];
/// Settings that error messages advise to change.
const SETTINGS: [(&str, &str); 4] =
    [("context", "--context"), ("exact", "--exact"), ("memory", "--memory"), ("sessions", "--sessions")];

/// The message of an error with options instead of the library's fields and settings.
pub fn named(fault: &Fault, sentence: String) -> String {
    // These messages quote names, and a model may be named like a setting.
    let quotes = matches!(fault.kind(), ErrorKind::ModelNotFound | ErrorKind::AliasTaken);
    if quotes || fault.field() == Some("model") {
        return sentence;
    }
    let message = match fault.field() {
        Some(field) => replace_field(field, sentence),
        None => sentence,
    };
    SETTINGS.iter().fold(message, |text, (word, option)| text.replace(&format!("`{word}`"), &format!("`{option}`")))
}

/// The message with its leading field replaced by the option.
fn replace_field(field: &str, sentence: String) -> String {
    let (head, rest) = field.split_once('.').unwrap_or((field, ""));
    let find =
        |table: &[(&str, &str)]| table.iter().find(|(name, _)| *name == head).map(|(_, named)| (*named).to_owned());
    let option = || find(&FIELDS).map(|option| format!("`{}`", format!("{option} {rest}").trim_end()));
    match find(&TEXTS).or_else(option) {
        Some(named) => sentence.replacen(&format!("`{field}`: "), &format!("{named}: "), 1),
        None => sentence,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn said(fault: Fault) -> String {
        let sentence = fault.to_string();
        named(&fault, sentence)
    }

    fn refused(why: &str) -> Fault {
        Fault::new(ErrorKind::InvalidArgument, why)
    }

    #[test]
    fn every_option_in_a_table_exists() {
        let cli = Cli::command();
        let chat = cli.find_subcommand("chat").expect("the command is there");
        let longs: Vec<&str> = chat.get_arguments().filter_map(|arg| arg.get_long()).collect();
        for (field, option) in FIELDS.iter().chain(&SETTINGS) {
            assert!(longs.contains(&option.trim_start_matches('-')), "{field}: {option}");
        }
    }

    #[test]
    fn an_error_of_a_field_names_its_option() {
        assert_eq!(said(refused("is 3").about("max_tokens")), "`--max-tokens`: is 3");
        assert_eq!(said(refused("is taken").about("chat_template_kwargs.tools")), "`--template-arg tools`: is taken");
        assert_eq!(
            said(refused("rounds, and no answer is `exact`").about("wire")),
            "`--wire`: rounds, and no answer is `--exact`"
        );
        let long = Fault::new(ErrorKind::ContextOverflow, "9 tokens; give it a longer `context`").about("messages");
        assert_eq!(said(long), "the conversation: 9 tokens; give it a longer `--context`");
        assert_eq!(said(Fault::new(ErrorKind::NoPlan, "it needs more `memory`")), "it needs more `--memory`");
        assert_eq!(said(refused("is 3").about("caller")), "`caller`: is 3");
    }

    #[test]
    fn a_model_named_like_a_setting_keeps_its_name() {
        assert_eq!(said(Fault::new(ErrorKind::ModelNotFound, "no model `memory`")), "no model `memory`");
        assert_eq!(said(refused("`exact` could be 2 models").of_field("model")), "`exact` could be 2 models");
    }
}
