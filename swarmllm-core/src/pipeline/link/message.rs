//! Stage messages in memory, and their bytes on the wire.
//!
//! A message to the node itself is moved, never encoded; a message to a peer goes through [`Message::encode`].

use crate::base::{Fault, NodeId, SessionId};
use crate::engine::sample::LogitRow;
use crate::wire::job::{LogitShape, LogitsHeader, MAX_STAGES, StageHeader, StepHeader};
use crate::wire::tensor::{decode_f32, encode_f32};
use crate::wire::{Frame, WireError};

/// Chunks of a prefill that may be under way. Two per stage keep a chain of stages busy; more would only queue.
pub const MAX_CHUNKS_IN_FLIGHT: usize = 8;
/// In place of a stage's number: the stage that answers, whatever its number.
pub const ANSWERING_STAGE: u32 = u32::MAX;

/// A stage of a session's route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionStage {
    /// The session.
    pub session: SessionId,
    /// The route's number, from 0.
    pub epoch: u32,
    /// The stage's number in the route, from 0.
    pub stage: u32,
}

/// A message and its sender.
pub type Delivery = (NodeId, Message);

/// One message between coordinator and stages.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Compute `hidden` (`rows * width` floats) and pass the result on.
    Step { header: StepHeader, hidden: Vec<f32> },
    /// The last stage's answer to a step.
    Logits { header: LogitsHeader, rows: Vec<LogitRow> },
    /// A stage failed.
    Failed { session: SessionId, epoch: u32, stage: u32, fault: Fault },
}

impl Message {
    /// The epoch of the route that it belongs to.
    pub fn epoch(&self) -> u32 {
        match self {
            Message::Step { header, .. } => header.epoch,
            Message::Logits { header, .. } => header.epoch,
            Message::Failed { epoch, .. } => *epoch,
        }
    }

    /// The session that it belongs to.
    pub fn session(&self) -> SessionId {
        match self {
            Message::Step { header, .. } => header.session,
            Message::Logits { header, .. } => header.session,
            Message::Failed { session, .. } => *session,
        }
    }

    /// Bytes of its numbers in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Message::Step { hidden, .. } => size_of_val(&hidden[..]),
            Message::Logits { rows, .. } => rows.iter().map(row_bytes).sum(),
            Message::Failed { .. } => 0,
        }
    }

    /// Header and body for the wire.
    pub fn encode(self) -> (StageHeader, Vec<u8>) {
        match self {
            Message::Step { header, hidden } => {
                let body = header.codec.encode(&hidden, header.width as usize);
                (StageHeader::Step(header), body)
            }
            Message::Logits { header, rows } => {
                let body = rows.iter().flat_map(encode_row).collect();
                (StageHeader::Logits(header), body)
            }
            Message::Failed { session, epoch, stage, fault } => {
                (StageHeader::Failed { session, epoch, stage, fault }, Vec::new())
            }
        }
    }

    /// Parses a peer's frame. The shape must match the body, and every float must be finite.
    pub fn decode(frame: Frame<StageHeader>) -> Result<Message, WireError> {
        let Frame { header, body } = frame;
        match header {
            StageHeader::Step(header) => {
                check_stages(&header.compute_us)?;
                let hidden = header.codec.decode(&body, header.rows as usize, header.width as usize)?;
                Ok(Message::Step { header, hidden })
            }
            StageHeader::Logits(header) => {
                check_stages(&header.compute_us)?;
                let rows = decode_rows(&header, &body)?;
                Ok(Message::Logits { header, rows })
            }
            StageHeader::Failed { session, epoch, stage, fault } => {
                no_body(&body)?;
                // Rebuilt, so that the bound on fault texts holds for a peer's fault too.
                let fault = Fault::new(fault.kind(), fault.message());
                Ok(Message::Failed { session, epoch, stage, fault })
            }
        }
    }
}

fn check_stages(compute_us: &[u32]) -> Result<(), WireError> {
    match compute_us.len() <= MAX_STAGES {
        true => Ok(()),
        false => Err(WireError::Header(format!("{} stages, at most {MAX_STAGES}", compute_us.len()))),
    }
}

fn no_body(body: &[u8]) -> Result<(), WireError> {
    match body.is_empty() {
        true => Ok(()),
        false => Err(WireError::Body(format!("{} bytes where none belong", body.len()))),
    }
}

/// The common shape of `rows`; all rows of a step are reduced alike.
pub fn shape_of(rows: &[LogitRow]) -> LogitShape {
    match rows.first() {
        Some(LogitRow::Top { ids, .. }) => LogitShape::Top { k: ids.len() as u32 },
        Some(LogitRow::Full(row)) => LogitShape::Full { vocab: row.len() as u32 },
        None => LogitShape::Top { k: 0 },
    }
}

fn row_bytes(row: &LogitRow) -> usize {
    match row {
        LogitRow::Top { ids, logits, .. } => size_of_val(&ids[..]) + size_of_val(&logits[..]),
        LogitRow::Full(row) => size_of_val(&row[..]),
    }
}

fn encode_row(row: &LogitRow) -> Vec<u8> {
    match row {
        LogitRow::Top { lse, ids, logits } => {
            let mut bytes = lse.to_le_bytes().to_vec();
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            bytes.extend(encode_f32(logits));
            bytes
        }
        LogitRow::Full(row) => encode_f32(row),
    }
}

fn decode_rows(header: &LogitsHeader, body: &[u8]) -> Result<Vec<LogitRow>, WireError> {
    let row_bytes = match header.shape {
        LogitShape::Top { k } => (k as usize).saturating_mul(8).saturating_add(4),
        LogitShape::Full { vocab } => (vocab as usize).saturating_mul(4),
    };
    if (header.rows as usize).checked_mul(row_bytes) != Some(body.len()) || (row_bytes == 0 && header.rows > 0) {
        return Err(WireError::Body(format!("{} bytes for {} rows of {row_bytes}", body.len(), header.rows)));
    }
    if header.rows == 0 {
        return Ok(Vec::new());
    }
    body.chunks_exact(row_bytes).map(|row| decode_row(header.shape, row)).collect()
}

fn decode_row(shape: LogitShape, row: &[u8]) -> Result<LogitRow, WireError> {
    match shape {
        LogitShape::Full { vocab } => Ok(LogitRow::Full(decode_f32(row, vocab as usize)?)),
        LogitShape::Top { k } => {
            let (lse, rest) = row.split_at(4);
            let (ids, logits) = rest.split_at(4 * k as usize);
            let lse = decode_f32(lse, 1)?.first().copied().unwrap_or_default();
            let ids = ids.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect();
            Ok(LogitRow::Top { lse, ids, logits: decode_f32(logits, k as usize)? })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Codec;
    use crate::wire::job::RowOutput;
    use proptest::prelude::*;

    const SESSION: SessionId = SessionId([7; 16]);

    fn there_and_back(message: Message) -> Result<Message, WireError> {
        let (header, body) = message.encode();
        Message::decode(Frame { header, body })
    }

    fn step(rows: u32, width: u32, hidden: Vec<f32>) -> Message {
        let header = StepHeader {
            session: SESSION,
            epoch: 1,
            stage: 0,
            step: 3,
            pos: 9,
            rows,
            width,
            codec: Codec::F32,
            want_from: rows,
            want: RowOutput::Full,
            committed: 9,
            compute_us: vec![5],
        };
        Message::Step { header, hidden }
    }

    fn logits(rows: Vec<LogitRow>) -> Message {
        let shape = shape_of(&rows);
        let header =
            LogitsHeader { session: SESSION, epoch: 0, step: 0, rows: rows.len() as u32, shape, compute_us: vec![] };
        Message::Logits { header, rows }
    }

    #[test]
    fn every_message_round_trips() {
        let top = LogitRow::Top { lse: 3.5, ids: vec![4, 1], logits: vec![2.0, 1.0] };
        let messages = [
            step(2, 3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            logits(vec![top.clone(), top]),
            logits(vec![LogitRow::Full(vec![0.5, -0.5])]),
            logits(Vec::new()),
        ];
        for message in messages {
            assert_eq!(there_and_back(message.clone()).unwrap(), message);
        }
    }

    #[test]
    fn a_wrong_shape_or_a_number_that_is_not_finite_is_refused() {
        assert!(there_and_back(step(2, 3, vec![1.0; 5])).is_err());
        assert!(there_and_back(step(u32::MAX, u32::MAX, vec![1.0; 5])).is_err());
        assert!(there_and_back(step(1, 2, vec![1.0, f32::NAN])).is_err());
        assert!(there_and_back(logits(vec![LogitRow::Full(vec![f32::INFINITY])])).is_err());
        let (header, mut body) = logits(vec![LogitRow::Full(vec![1.0])]).encode();
        body.push(0);
        assert!(Message::decode(Frame { header, body }).is_err());
    }

    proptest! {
        #[test]
        fn foreign_bodies_never_panic(rows in 0u32..9, k in 0u32..9, body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let shape = LogitShape::Top { k };
            let header = LogitsHeader { session: SESSION, epoch: 0, step: 0, rows, shape, compute_us: vec![] };
            let _ = Message::decode(Frame { header: StageHeader::Logits(header), body });
        }
    }
}
