//! Bounds templates by rewriting their bytecode.
//!
//! [`prepare`] checks a template token by token before it is compiled. [`compile`] then rewrites its instructions:
//! those that build or compare values become calls of metered functions ([`super::operators`]), and refused ones become
//! calls that fail when they run. A template that never runs a refused part renders.
//!
//! The rewriting needs minijinja's `unstable_machinery`, hence the pin of its version. The stable interface (`fuel`, a
//! limited output, a dedicated thread) cannot replace it, for three reasons:
//!
//! - Memory. `fuel` counts instructions, not the size of their results. `{% set ns.s = ns.s ~ ns.s %}` doubles a text
//!   with about ten instructions: 40 rounds take about 400 of [`FUEL`](super::FUEL), and 1 TiB. `ns.l + ns.l` on lists and
//!   `{% set x %}{{ x }}{{ x }}{% endset %}` grow as fast. Such values never reach the output, operators cannot be
//!   overridden, and a thread has no memory limit.
//! - Compile time. The compiler folds constants: each `'a' * 100000000` allocates 100 MB, and no fuel counts it.
//! - Taint. `==`, `in` and `<` must compare the plain characters of untrusted texts ([`super::taint`]). Only rewritten
//!   operators can, and they follow Python's rules where the engine's differ.

use std::borrow::Cow;

use minijinja::machinery::{CompiledTemplate, Instruction, Instructions, Span, TemplateConfig, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Value};

use super::error::TemplateError;
use super::limits::MAX_TEMPLATE;

/// Most tokens between two delimiters: the parser and the compiler recurse in them.
const MAX_EXPRESSION_TOKENS: usize = 1024;
/// Most `elif` branches of a template: the parser recurses in them too.
const MAX_ELIFS: usize = 256;
/// The flag of the engine's loop instruction for `recursive`.
const LOOP_RECURSIVE: u8 = 2;

/// A filter that returns its value. It stands before each product, so that the compiler does not fold products of
/// constants.
pub const OPAQUE: &str = "opaque__";
/// Comparisons in the engine's order.
const COMPARISONS: [&str; 8] = ["==", "!=", "<", "<=", ">", ">=", "in", "not in"];
/// Methods of maps: `map.items` is the method, not the item with the key `items`.
pub const MAP_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
/// Refused parts of the language, as errors name them.
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
/// Indices into [`UNSUPPORTED`].
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

/// Names of the metered functions. All but the last are not identifiers, so that templates cannot call them.
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
    pub const COPY: &str = "[]=";
    pub const MERGE: &str = "**{}";
    pub const SPREAD: &str = "*[]";
    pub const ITER: &str = "for";
    pub const EQ: &str = "==";
    pub const NE: &str = "!=";
    pub const LT: &str = "<";
    pub const LE: &str = "<=";
    pub const GT: &str = ">";
    pub const GE: &str = ">=";
    pub const IN: &str = "in()";
    pub const COMPARE: &str = "<<";
    pub const SET: &str = ".=";
    pub const CHANGED: &str = "changed()";
    pub const CYCLE: &str = "cycle()";
    pub const UNSUPPORTED: &str = "unsupported__";
}

/// The source as the engine compiles it: line ends as `\n`, `generation` as `with`, products guarded by [`OPAQUE`].
/// Refuses sources in which the engine would recurse too deep.
pub fn prepare(source: &str) -> Result<String, TemplateError> {
    if source.len() > MAX_TEMPLATE {
        return Err(TemplateError::TooLong { bytes: source.len(), max: MAX_TEMPLATE });
    }
    let source: Cow<'_, str> = match source.contains('\r') {
        true => source.replace("\r\n", "\n").replace('\r', "\n").into(),
        false => source.into(),
    };
    let mut scanner = TokenScanner::default();
    for token in tokenize(&source, false, syntax().map_err(TemplateError::syntax)?) {
        let (token, span) = token.map_err(TemplateError::syntax)?;
        scanner.read(token, span)?;
    }
    let (mut prepared, mut next) = (String::with_capacity(source.len()), 0);
    for (start, end, text) in scanner.edits {
        prepared.push_str(source.get(next..start).unwrap_or_default());
        prepared.push_str(&text);
        next = end;
    }
    prepared.push_str(source.get(next..).unwrap_or_default());
    Ok(prepared)
}

/// The handling of white space that chat templates expect.
fn syntax() -> Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// Scans a source token by token.
#[derive(Default)]
struct TokenScanner<'s> {
    /// Tokens since the last delimiter.
    count: usize,
    branches: usize,
    /// After the last token `*` is not a product.
    opens: bool,
    /// The name of the current tag.
    tag: Option<&'s str>,
    begins_tag: bool,
    parens: usize,
    assigns: bool,
    /// Open tags that matter to `break`.
    open: Vec<&'s str>,
    /// Byte ranges and their replacements, in order.
    edits: Vec<(usize, usize, Cow<'static, str>)>,
}

impl<'s> TokenScanner<'s> {
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
            // A `set` without a value captures the output up to its end.
            Token::BlockEnd if self.tag.take() == Some("set") && !self.assigns => self.open.push("set"),
            _ => (),
        }
        match self.count > MAX_EXPRESSION_TOKENS || self.branches > MAX_ELIFS {
            true => Err(TemplateError::Unsupported { what: "an expression or a condition of this length" }),
            false => Ok(()),
        }
    }

    fn begin(&mut self, tag: &'s str, start: usize, end: usize) {
        match tag {
            "elif" => self.branches += 1,
            // transformers' mark for training: a scope of variables without other effect.
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
                let call = format!("do {}({})", call::UNSUPPORTED, unsupported::BREAK);
                self.edits.push((start, end, call.into()));
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

/// Compiles a prepared source to instructions that are bounded where the metered functions are installed.
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
    // Out-of-line sequences follow the end. `Return` keeps the template from running into them.
    instructions.add(Instruction::Return);
    for at in 0..len {
        let Some(old) = instructions.get(at).cloned() else { break };
        let new = match replacement(old)? {
            Replacement::Keep => continue,
            Replacement::One(new) => new,
            Replacement::OutOfLine(steps) => {
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
    /// A sequence behind the end, with the same effect on the stack.
    OutOfLine(Vec<Instruction<'s>>),
}

/// A call of a metered function with `arguments` values of the stack.
fn call_function(name: &'static str, arguments: usize) -> Result<Instruction<'static>, TemplateError> {
    let arguments =
        u16::try_from(arguments).map_err(|_| TemplateError::Unsupported { what: "a list of this length" })?;
    Ok(Instruction::CallFunction(name, Some(arguments)))
}

/// A refused instruction: the rendering stops when it runs.
fn reject(what: usize) -> Replacement<'static> {
    Replacement::OutOfLine(vec![
        Instruction::LoadConst(Value::from(what)),
        Instruction::CallFunction(call::UNSUPPORTED, Some(1)),
    ])
}

fn replacement(instruction: Instruction<'_>) -> Result<Replacement<'_>, TemplateError> {
    use Instruction as I;
    use Replacement::{Keep, One, OutOfLine};
    Ok(match instruction {
        I::EmitRaw(raw) => OutOfLine(vec![I::LoadConst(Value::from(raw)), I::Emit]),
        I::LoadConst(value) if is_shared(&value) => OutOfLine(vec![I::LoadConst(value), call_function(call::COPY, 1)?]),
        I::SetAttr(name) => {
            OutOfLine(vec![I::LoadConst(Value::from(name)), call_function(call::SET, 3)?, I::DiscardTop])
        }
        I::GetAttr(name) if MAP_METHODS.contains(&name) => {
            OutOfLine(vec![I::LoadConst(Value::from(name)), call_function(call::ATTR, 2)?])
        }
        I::CallMethod("changed", arguments) => One(I::CallFunction(call::CHANGED, arguments)),
        I::CallMethod("cycle", arguments) => One(I::CallFunction(call::CYCLE, arguments)),
        I::UnpackLists(lists) => OutOfLine(vec![call_function(call::SPREAD, lists)?, I::UnpackLists(1)]),
        I::MergeKwargs(maps) => One(call_function(call::MERGE, maps)?),
        I::CompareAndPreserve(by) => {
            // The engine does not export the type. The pin of its version fixes the order of the variants.
            let by = COMPARISONS.get(by as usize).copied().unwrap_or("not in");
            OutOfLine(vec![I::LoadConst(Value::from(by)), call_function(call::COMPARE, 3)?, I::UnpackList(2)])
        }
        I::BuildList(Some(items)) => One(call_function(call::LIST, items)?),
        I::BuildTuple(Some(items)) => One(call_function(call::TUPLE, items)?),
        I::BuildMap(pairs) => One(call_function(call::MAP, pairs.saturating_mul(2))?),
        I::Slice => One(call_function(call::SLICE, 4)?),
        I::PushLoop(flags) if flags & LOOP_RECURSIVE != 0 => reject(unsupported::RECURSIVE),
        I::PushLoop(flags) => OutOfLine(vec![call_function(call::ITER, 1)?, I::PushLoop(flags)]),
        I::PushAutoEscape | I::PopAutoEscape => reject(unsupported::AUTOESCAPE),
        I::CallBlock(_) => reject(unsupported::BLOCK),
        I::LoadBlocks => reject(unsupported::EXTENDS),
        I::ExportLocals | I::Include(_) => reject(unsupported::INCLUDE),
        I::FastSuper => reject(unsupported::SUPER),
        I::FastRecurse => reject(unsupported::RECURSIVE),
        other => match operator(&other) {
            Some(name) => One(call_function(name, 2)?),
            None if is_bounded(&other) => Keep,
            None => reject(unsupported::OTHER),
        },
    })
}

/// Whether a constant is a value that templates can change.
fn is_shared(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map) && !value.is_tuple() && !value.is_kwargs()
}

/// The metered function of a binary operator.
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

/// Whether an instruction builds no more than its fuel accounts for.
fn is_bounded(instruction: &Instruction<'_>) -> bool {
    use Instruction as I;
    match instruction {
        I::StoreLocal(_) | I::Lookup(_) | I::GetAttr(_) | I::LoadConst(_) | I::BuildKwargs(_) | I::UnpackList(_) => {
            true
        }
        // The items that passed a loop's condition; each was pushed by its own instruction.
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
