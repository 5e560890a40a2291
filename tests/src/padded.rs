//! A test model with additional vocabulary padding: more rows, the same tokens. A norm of each layer differs in its last
//! bit, so that the two models have no shard in common.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use swarmllm_core::model::Fact;
use swarmllm_core::model::gguf::{GgmlType, Gguf, HeaderTensor, Value, write_header};

/// Token type of unused tokens.
const UNUSED: i32 = 5;

/// Writes `model`, which has tied embeddings, with `extra` additional unused tokens.
pub fn padded(model: &Path, extra: usize, directory: &Path) -> PathBuf {
    let whole = fs::read(model).expect("the model can be read");
    let file = File::open(model).expect("the model can be opened");
    let gguf = Gguf::read(&mut BufReader::new(file)).expect("the model is sound");
    let words = gguf.string_array("tokenizer.ggml.tokens").expect("strings").expect("a vocabulary");
    let rows = words.len() + extra;
    let names: Vec<String> = (words.len()..rows).map(|id| format!("[PAD{id}]")).collect();
    let words: Vec<&str> = words.into_iter().chain(names.iter().map(String::as_str)).collect();
    let types = gguf.get("tokenizer.ggml.token_type").map(Value::parse).expect("types").expect("sound types");
    let number = |value| if let Value::I32(number) = value { number } else { panic!("types are numbers") };
    let types = types.as_array().expect("a list");
    let types: Vec<i32> = types.iter().map(number).chain(std::iter::repeat_n(UNUSED, extra)).collect();
    let mut facts = gguf.facts.clone();
    for fact in &mut facts {
        match fact.key.as_str() {
            "tokenizer.ggml.tokens" => *fact = Fact::strings(&fact.key, &words),
            "tokenizer.ggml.token_type" => *fact = Fact::i32s(&fact.key, &types),
            "llama.vocab_size" => *fact = Fact::u32(&fact.key, rows as u32),
            _ => {}
        }
    }
    let (mut placed, mut data) = (Vec::new(), Vec::new());
    for tensor in &gguf.tensors {
        let mut dims = tensor.dims.clone();
        let from = (gguf.data_offset + tensor.offset) as usize;
        let offset = data.len() as u64;
        data.extend_from_slice(&whole[from..from + tensor.size as usize]);
        if tensor.name.ends_with("norm.weight") {
            // The last bit of its first number, an f32.
            data[offset as usize] ^= 1;
        }
        if tensor.name == "token_embd.weight" {
            dims[1] = rows as u64;
            let size = GgmlType::from_id(tensor.ty).and_then(|ty| ty.tensor_size(&dims).ok()).expect("a size");
            data.resize(offset as usize + size as usize, 0);
        }
        data.resize(data.len().next_multiple_of(gguf.alignment as usize), 0);
        placed.push((tensor.name.clone(), dims, tensor.ty, offset));
    }
    let headers = placed.iter().map(|(name, dims, ty, offset)| HeaderTensor { name, dims, ty: *ty, offset: *offset });
    let header = write_header(&facts, &headers.collect::<Vec<_>>(), gguf.alignment);
    let path = directory.join("padded.gguf");
    fs::write(&path, [header, data].concat()).expect("the model can be written");
    path
}
