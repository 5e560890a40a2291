//! Templates as programs that cannot outgrow their meter.
//!
//! The template engine counts instructions, not what one instruction builds: `a ~ a`, a list in a list, or a captured
//! block can double what is in memory at every step, and constant expressions are computed while compiling. So a
//! template is checked word by word before it is compiled, and its instructions are then rewritten: those that build
//! or compare values become calls of metered functions ([`super::builtins`]), those that templates for chats never
//! need are refused.

use minijinja::machinery::{CompiledTemplate, Instruction, Instructions, TemplateConfig, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Value};

use super::{MAX_TEMPLATE, TemplateError};

/// Words between two delimiters: the parser and the compiler recurse in them.
const MAX_WORDS: usize = 1024;
/// `elif` branches in a template: the parser recurses in them too.
const MAX_BRANCHES: usize = 256;
/// A flag of the engine's loop instruction.
const LOOP_RECURSIVE: u8 = 2;

/// Names of the metered functions. No template can say them: they are no identifiers.
pub mod call {
    pub const ADD: &str = "+";
    pub const CONCAT: &str = "~";
    pub const SLICE: &str = "[:]";
    pub const ITEM: &str = "[.]";
    pub const LIST: &str = "[]";
    pub const MAP: &str = "{}";
    pub const EQ: &str = "==";
    pub const NE: &str = "!=";
    pub const LT: &str = "<";
    pub const LE: &str = "<=";
    pub const GT: &str = ">";
    pub const GE: &str = ">=";
    pub const IN: &str = "in()";
    pub const SET: &str = ".=";
}

/// Compiles `source` to instructions that are safe to run with the metered functions in place.
pub fn compile(source: &str) -> Result<Instructions<'_>, TemplateError> {
    if source.len() > MAX_TEMPLATE {
        return Err(TemplateError::TooLong { bytes: source.len(), max: MAX_TEMPLATE });
    }
    let syntax = syntax().map_err(TemplateError::syntax)?;
    check_words(source, syntax.clone())?;
    let config =
        TemplateConfig { syntax_config: syntax, default_auto_escape: std::sync::Arc::new(|_: &str| AutoEscape::None) };
    let compiled = CompiledTemplate::new("chat_template", source, &config).map_err(TemplateError::syntax)?;
    if !compiled.blocks.is_empty() {
        return Err(TemplateError::Unsupported { what: "block" });
    }
    let mut instructions = compiled.instructions;
    rewrite(&mut instructions)?;
    Ok(instructions)
}

/// White space as the templates are written for.
fn syntax() -> Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

fn check_words(source: &str, syntax: SyntaxConfig) -> Result<(), TemplateError> {
    let (mut words, mut branches) = (0, 0);
    for token in tokenize(source, false, syntax) {
        let (token, _) = token.map_err(TemplateError::syntax)?;
        words += 1;
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => words = 0,
            // Products of constants are computed by the compiler, at any size.
            Token::Mul | Token::Pow => return Err(TemplateError::Unsupported { what: "*" }),
            Token::Ident("elif") => branches += 1,
            _ => (),
        }
        if words > MAX_WORDS || branches > MAX_BRANCHES {
            return Err(TemplateError::Unsupported { what: "an expression or a condition of that length" });
        }
    }
    Ok(())
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

fn replacement(instruction: Instruction<'_>) -> Result<Replacement<'_>, TemplateError> {
    use Instruction as I;
    let call = |name, arguments: usize| match u16::try_from(arguments) {
        Ok(arguments) => Ok(Replacement::One(I::CallFunction(name, Some(arguments)))),
        Err(_) => Err(TemplateError::Unsupported { what: "a list of that length" }),
    };
    match instruction {
        I::EmitRaw(raw) => Ok(Replacement::Detour(vec![I::LoadConst(Value::from(raw)), I::Emit])),
        I::SetAttr(name) => Ok(Replacement::Detour(vec![
            I::LoadConst(Value::from(name)),
            I::CallFunction(call::SET, Some(3)),
            I::DiscardTop,
        ])),
        I::Add => call(call::ADD, 2),
        I::StringConcat => call(call::CONCAT, 2),
        I::Slice => call(call::SLICE, 4),
        I::GetItem => call(call::ITEM, 2),
        I::BuildList(Some(items)) | I::BuildTuple(Some(items)) => call(call::LIST, items),
        I::BuildMap(pairs) => call(call::MAP, pairs.saturating_mul(2)),
        I::Eq => call(call::EQ, 2),
        I::Ne => call(call::NE, 2),
        I::Lt => call(call::LT, 2),
        I::Lte => call(call::LE, 2),
        I::Gt => call(call::GT, 2),
        I::Gte => call(call::GE, 2),
        I::In => call(call::IN, 2),
        I::PushLoop(flags) if flags & LOOP_RECURSIVE != 0 => Err(TemplateError::Unsupported { what: "recursive loop" }),
        I::StoreLocal(_) | I::Lookup(_) | I::GetAttr(_) | I::LoadConst(_) | I::BuildKwargs(_) | I::UnpackList(_) => {
            Ok(Replacement::Keep)
        }
        I::Sub | I::Div | I::IntDiv | I::Rem | I::Neg | I::Not => Ok(Replacement::Keep),
        I::ApplyFilter(..) | I::PerformTest(..) | I::CallFunction(_, Some(_)) | I::CallMethod(_, Some(_)) => {
            Ok(Replacement::Keep)
        }
        I::CallObject(Some(_)) | I::Emit | I::PushLoop(_) | I::PushWith | I::Iterate(_) | I::PushDidNotIterate => {
            Ok(Replacement::Keep)
        }
        I::PopFrame | I::PopLoopFrame | I::Jump(_) | I::JumpIfFalse(_) | I::JumpIfFalseOrPop(_) => {
            Ok(Replacement::Keep)
        }
        I::JumpIfTrueOrPop(_) | I::BeginCapture(_) | I::EndCapture | I::DupTop | I::DiscardTop | I::Swap => {
            Ok(Replacement::Keep)
        }
        I::BuildMacro(..) | I::Return | I::IsUndefined | I::Enclose(_) | I::GetClosure => Ok(Replacement::Keep),
        _ => Err(TemplateError::Unsupported {
            what: "include, import, extends, autoescape, `*args` or a chained comparison",
        }),
    }
}
