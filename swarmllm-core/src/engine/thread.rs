//! The stage thread (to be written).
use super::{Row, sample::LogitRow};
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce { Hidden, Top(u32), Full }
#[derive(Debug, Clone, PartialEq)]
pub struct StepJob { pub hidden: Vec<f32>, pub rows: Vec<Row>, pub reduce: Reduce }
#[derive(Debug, Clone, PartialEq)]
pub enum StepOutput { Hidden(Vec<f32>), Logits(Vec<LogitRow>) }
#[derive(Clone)]
pub struct StageHandle {}
