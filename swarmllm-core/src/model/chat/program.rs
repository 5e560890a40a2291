//! Templates as programs that cannot outgrow their meter.
//!
//! The template engine counts instructions, not what one instruction builds: `a ~ a`, a list in a list, or a captured
//! block can double what is in memory at every step, and constant expressions are computed while compiling. So a
//! template is checked word by word before it is compiled ([`prepare`]), and its instructions are then rewritten
//! ([`compile`]): those that build or compare values become calls of metered functions ([`super::operators`]), those that
//! are not admitted become calls that say so when they are run. What is never run is never missed.

use std::borrow::Cow;

use minijinja::machinery::{CompiledTemplate, Instruction, Instructions, Span, TemplateConfig, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Value};

use super::error::TemplateError;
use super::limits::MAX_TEMPLATE;

/// Words between two delimiters: the parser and the compiler recurse in them.
const MAX_WORDS: usize = 1024;
/// `elif` branches in a template: the parser recurses in them too.
const MAX_BRANCHES: usize = 256;
/// A flag of the engine's loop instruction.
const LOOP_RECURSIVE: u8 = 2;

/// A filter that gives its value back. It stands before each product, for products of constants are computed by the
/// compiler, at any size.
pub const OPAQUE: &str = "opaque__";
/// Comparisons in the engine's order.
const COMPARISONS: [&str; 8] = ["==", "!=", "<", "<=", ">", ">=", "in", "not in"];
/// Methods of maps: `map.items` is the method, not the item of that name.
pub const MAP_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
/// What is not admitted, as errors name it.
pub const UNSUPPORTED: [&str; 8] = [
    "`autoescape`",
    "`block`",
    "`extends`",
    "`include` or `import`",
    "`super`",
    "a recursive loop",
    "`break` or `continue` in a part of a loop that is captured or has variables of its own",
    "another instruction",
];
/// Places in [`UNSUPPORTED`].
mod unsupported {
    pub const AUTOESCAPE: usize = 0;
    pub const BLOCK: usize = 1;
    pub const EXTENDS: usize = 2;
    pub const INCLUDE: usize = 3;
    pub const SUPER: usize = 4;
    pub const RECURSIVE: usize = 5;
    pub const BREAK: usize = 6;
    pub const OTHER: usize = 7;
}

/// Names of the metered functions. No template can say them, but for the last: they are no identifiers.
pub mod call {
    pub const ADD: &str = "+";
    pub const SUB: &str = "-";
    pub const MUL: &str = "*";
    pub const DIV: &str = "/";
    pub const FLOOR_DIV: &str = "//";
    pub const REM: &str = "%";
    pub const POW: &str = "**";
    pub const CONCAT: &str = "~";
    pub const SLICE: &str = "[:]";
    pub const ITEM: &str = "[.]";
    pub const ATTR: &str = ".";
    pub const LIST: &str = "[]";
    pub const TUPLE: &str = "()";
    pub const MAP: &str = "{}";
    pub const FRESH: &str = "[]=";
    pub const MERGE: &str = "**{}";
    pub const SPREAD: &str = "*[]";
    pub const EACH: &str = "for";
    pub const EQ: &str = "==";
    pub const NE: &str = "!=";
    pub const LT: &str = "<";
    pub const LE: &str = "<=";
    pub const GT: &str = ">";
    pub const GE: &str = ">=";
    pub const IN: &str = "in()";
    pub const CHAIN: &str = "<<";
    pub const SET: &str = ".=";
    pub const CHANGED: &str = "changed()";
    pub const CYCLE: &str = "cycle()";
    pub const UNSUPPORTED: &str = "unsupported__";
}

/// The source as the engine compiles it: line ends as `\n`, and what the engine does not know said in its words.
/// Refuses what would make the engine recurse too deep.
pub fn prepare(source: &str) -> Result<String, TemplateError> {
    if source.len() > MAX_TEMPLATE {
        return Err(TemplateError::TooLong { bytes: source.len(), max: MAX_TEMPLATE });
    }
    let source: Cow<'_, str> = match source.contains('\r') {
        true => source.replace("\r\n", "\n").replace('\r', "\n").into(),
        false => source.into(),
    };
    let mut words = Words::default();
    for token in tokenize(&source, false, syntax().map_err(TemplateError::syntax)?) {
        let (token, span) = token.map_err(TemplateError::syntax)?;
        words.read(token, span)?;
    }
    let (mut prepared, mut next) = (String::with_capacity(source.len()), 0);
    for (start, end, text) in words.edits {
        prepared.push_str(source.get(next..start).unwrap_or_default());
        prepared.push_str(&text);
        next = end;
    }
    prepared.push_str(source.get(next..).unwrap_or_default());
    Ok(prepared)
}

/// White space as the templates are written for.
fn syntax() -> Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// What is known of a source, read word by word.
#[derive(Default)]
struct Words<'s> {
    /// Since the last delimiter.
    count: usize,
    branches: usize,
    /// The last word was one behind which `*` is no product.
    opens: bool,
    /// The first word of a tag, while the tag is read.
    tag: Option<&'s str>,
    begins_tag: bool,
    parens: usize,
    assigns: bool,
    /// Tags that are open and matter to `break`.
    open: Vec<&'s str>,
    /// Byte ranges and what comes in their place, in order.
    edits: Vec<(usize, usize, Cow<'static, str>)>,
}

impl<'s> Words<'s> {
    fn read(&mut self, token: Token<'s>, span: Span) -> Result<(), TemplateError> {
        self.count += 1;
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        let (begins_tag, opens) = (self.begins_tag, self.opens);
        self.begins_tag = matches!(token, Token::BlockStart);
        self.opens = matches!(token, Token::ParenOpen | Token::Comma);
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => self.count = 0,
            Token::Mul | Token::Pow if !opens => self.edits.push((start, start, format!("|{OPAQUE} ").into())),
            Token::Ident(tag) if begins_tag => {
                (self.tag, self.parens, self.assigns) = (Some(tag), 0, false);
                self.begin(tag, start, end);
            }
            Token::ParenOpen => self.parens += 1,
            Token::ParenClose => self.parens = self.parens.saturating_sub(1),
            Token::Assign if self.parens == 0 => self.assigns = true,
            // A `set` without a value captures what is rendered up to its end.
            Token::BlockEnd if self.tag.take() == Some("set") && !self.assigns => self.open.push("set"),
            _ => (),
        }
        match self.count > MAX_WORDS || self.branches > MAX_BRANCHES {
            true => Err(TemplateError::Unsupported { what: "an expression or a condition of that length" }),
            false => Ok(()),
        }
    }

    fn begin(&mut self, tag: &'s str, start: usize, end: usize) {
        match tag {
            "elif" => self.branches += 1,
            // A mark of transformers' for training, with variables of its own and no other effect.
            "generation" => {
                self.open.push("with");
                self.edits.push((start, end, "with".into()));
            }
            "endgeneration" => {
                self.close("with");
                self.edits.push((start, end, "endwith".into()));
            }
            "for" | "with" | "macro" | "call" | "filter" => self.open.push(tag),
            "break" | "continue" if self.open.last().is_some_and(|tag| *tag != "for") => {
                let says = format!("do {}({})", call::UNSUPPORTED, unsupported::BREAK);
                self.edits.push((start, end, says.into()));
            }
            _ => {
                if let Some(opened) = tag.strip_prefix("end") {
                    self.close(opened);
                }
            }
        }
    }

    fn close(&mut self, tag: &str) {
        if self.open.last() == Some(&tag) {
            self.open.pop();
        }
    }
}

/// Compiles a source that is prepared to instructions that are safe to run with the metered functions in place.
pub fn compile(prepared: &str) -> Result<Instructions<'_>, TemplateError> {
    let config = TemplateConfig {
        syntax_config: syntax().map_err(TemplateError::syntax)?,
        default_auto_escape: std::sync::Arc::new(|_: &str| AutoEscape::None),
    };
    let compiled = CompiledTemplate::new("chat_template", prepared, &config).map_err(TemplateError::syntax)?;
    let mut instructions = compiled.instructions;
    rewrite(&mut instructions)?;
    Ok(instructions)
}

fn rewrite(instructions: &mut Instructions<'_>) -> Result<(), TemplateError> {
    let len = (0..).take_while(|at| instructions.get(*at).is_some()).count() as u32;
    // Detours are put behind the end, which must not run into them.
    instructions.add(Instruction::Return);
    for at in 0..len {
        let Some(old) = instructions.get(at).cloned() else { break };
        let new = match replacement(old)? {
            Replacement::Keep => continue,
            Replacement::One(new) => new,
            Replacement::Detour(steps) => {
                let start = steps.into_iter().map(|step| instructions.add(step)).min();
                instructions.add(Instruction::Jump(at + 1));
                Instruction::Jump(start.unwrap_or(at + 1))
            }
        };
        if let Some(slot) = instructions.get_mut(at) {
            *slot = new;
        }
    }
    Ok(())
}

enum Replacement<'s> {
    Keep,
    One(Instruction<'s>),
    /// Several, with the same effect on the stack.
    Detour(Vec<Instruction<'s>>),
}

/// A call of a metered function with so many values of the stack.
fn calls(name: &'static str, arguments: usize) -> Result<Instruction<'static>, TemplateError> {
    let arguments =
        u16::try_from(arguments).map_err(|_| TemplateError::Unsupported { what: "a list of that length" })?;
    Ok(Instruction::CallFunction(name, Some(arguments)))
}

/// An instruction that is not admitted: the run ends where it comes.
fn refuses(what: usize) -> Replacement<'static> {
    Replacement::Detour(vec![
        Instruction::LoadConst(Value::from(what)),
        Instruction::CallFunction(call::UNSUPPORTED, Some(1)),
    ])
}

fn replacement(instruction: Instruction<'_>) -> Result<Replacement<'_>, TemplateError> {
    use Instruction as I;
    use Replacement::{Detour, Keep, One};
    Ok(match instruction {
        I::EmitRaw(raw) => Detour(vec![I::LoadConst(Value::from(raw)), I::Emit]),
        I::LoadConst(value) if is_shared(&value) => Detour(vec![I::LoadConst(value), calls(call::FRESH, 1)?]),
        I::SetAttr(name) => Detour(vec![I::LoadConst(Value::from(name)), calls(call::SET, 3)?, I::DiscardTop]),
        I::GetAttr(name) if MAP_METHODS.contains(&name) => {
            Detour(vec![I::LoadConst(Value::from(name)), calls(call::ATTR, 2)?])
        }
        I::CallMethod("changed", arguments) => One(I::CallFunction(call::CHANGED, arguments)),
        I::CallMethod("cycle", arguments) => One(I::CallFunction(call::CYCLE, arguments)),
        I::UnpackLists(lists) => Detour(vec![calls(call::SPREAD, lists)?, I::UnpackLists(1)]),
        I::MergeKwargs(maps) => One(calls(call::MERGE, maps)?),
        I::CompareAndPreserve(by) => {
            // The engine does not export the type; the order of its variants is pinned with the engine.
            let by = COMPARISONS.get(by as usize).copied().unwrap_or("not in");
            Detour(vec![I::LoadConst(Value::from(by)), calls(call::CHAIN, 3)?, I::UnpackList(2)])
        }
        I::BuildList(Some(items)) => One(calls(call::LIST, items)?),
        I::BuildTuple(Some(items)) => One(calls(call::TUPLE, items)?),
        I::BuildMap(pairs) => One(calls(call::MAP, pairs.saturating_mul(2))?),
        I::Slice => One(calls(call::SLICE, 4)?),
        I::PushLoop(flags) if flags & LOOP_RECURSIVE != 0 => refuses(unsupported::RECURSIVE),
        I::PushLoop(flags) => Detour(vec![calls(call::EACH, 1)?, I::PushLoop(flags)]),
        I::PushAutoEscape | I::PopAutoEscape => refuses(unsupported::AUTOESCAPE),
        I::CallBlock(_) => refuses(unsupported::BLOCK),
        I::LoadBlocks => refuses(unsupported::EXTENDS),
        I::ExportLocals | I::Include(_) => refuses(unsupported::INCLUDE),
        I::FastSuper => refuses(unsupported::SUPER),
        I::FastRecurse => refuses(unsupported::RECURSIVE),
        other => match operator(&other) {
            Some(name) => One(calls(name, 2)?),
            None if is_harmless(&other) => Keep,
            None => refuses(unsupported::OTHER),
        },
    })
}

/// Constants that a run could change.
fn is_shared(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map) && !value.is_tuple() && !value.is_kwargs()
}

/// The metered function of an operator with two values.
fn operator(instruction: &Instruction<'_>) -> Option<&'static str> {
    use Instruction as I;
    Some(match instruction {
        I::Add => call::ADD,
        I::Sub => call::SUB,
        I::Mul => call::MUL,
        I::Div => call::DIV,
        I::IntDiv => call::FLOOR_DIV,
        I::Rem => call::REM,
        I::Pow => call::POW,
        I::StringConcat => call::CONCAT,
        I::GetItem => call::ITEM,
        I::Eq => call::EQ,
        I::Ne => call::NE,
        I::Lt => call::LT,
        I::Lte => call::LE,
        I::Gt => call::GT,
        I::Gte => call::GE,
        I::In => call::IN,
        _ => return None,
    })
}

/// Instructions that build no more than they cost.
fn is_harmless(instruction: &Instruction<'_>) -> bool {
    use Instruction as I;
    match instruction {
        I::StoreLocal(_) | I::Lookup(_) | I::GetAttr(_) | I::LoadConst(_) | I::BuildKwargs(_) | I::UnpackList(_) => {
            true
        }
        // What passed the condition of a loop: the items were pushed one by one.
        I::BuildList(None) => true,
        I::Neg | I::Not => true,
        I::ApplyFilter(..) | I::PerformTest(..) | I::CallFunction(..) | I::CallMethod(..) | I::CallObject(_) => true,
        I::Emit | I::PushWith | I::Iterate(_) | I::PushDidNotIterate | I::PopFrame | I::PopLoopFrame => true,
        I::Jump(_) | I::JumpIfFalse(_) | I::JumpIfFalseOrPop(_) | I::JumpIfTrueOrPop(_) => true,
        I::BeginCapture(_) | I::EndCapture | I::DupTop | I::DiscardTop | I::Swap => true,
        I::BuildMacro(..) | I::Return | I::IsUndefined | I::Enclose(_) | I::GetClosure => true,
        _ => false,
    }
}
