//! Writes GGUF files with a single chosen defect.

/// GGUF value types.
pub const U32: u32 = 4;
/// See [`U32`].
pub const STRING: u32 = 8;
/// See [`U32`].
pub const ARRAY: u32 = 9;
/// ggml's F32.
pub const F32_TENSOR: u32 = 0;

/// One tensor of a crafted file.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// Shape, fastest axis first.
    pub dims: Vec<u64>,
    /// ggml type.
    pub ty: u32,
    /// Offset after the header.
    pub offset: u64,
}

/// A crafted file. Every field can be set to a false value.
#[derive(Debug, Clone)]
pub struct Crafted {
    /// First four bytes.
    pub magic: [u8; 4],
    /// Format version.
    pub version: u32,
    /// Claimed number of key-values, if not the actual one.
    pub claimed_facts: Option<u64>,
    /// Claimed number of tensors, if not the actual one.
    pub claimed_tensors: Option<u64>,
    /// Key, value type, value bytes.
    pub facts: Vec<(String, u32, Vec<u8>)>,
    /// Tensors.
    pub tensors: Vec<Tensor>,
    /// Bytes of tensor data.
    pub data: usize,
    /// Length to which the file is truncated.
    pub cut: Option<usize>,
}

/// Width of the crafted model.
const WIDTH: u64 = 32;
/// Alignment of tensors.
const ALIGNMENT: usize = 32;

/// The bytes of a GGUF string.
pub fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

impl Crafted {
    /// A small file with a valid header (one layer, F32, no tokenizer).
    pub fn sound() -> Crafted {
        let number = |key: &str, value: u32| (format!("llama.{key}"), U32, value.to_le_bytes().to_vec());
        let facts = vec![
            ("general.architecture".to_owned(), STRING, string("llama")),
            number("block_count", 1),
            number("embedding_length", WIDTH as u32),
            number("context_length", 128),
            number("feed_forward_length", 2 * WIDTH as u32),
            number("attention.head_count", 2),
            number("attention.head_count_kv", 2),
        ];
        let mut crafted = Crafted {
            magic: *b"GGUF",
            version: 3,
            claimed_facts: None,
            claimed_tensors: None,
            facts,
            tensors: Vec::new(),
            data: 0,
            cut: None,
        };
        for name in ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight", "output_norm.weight"] {
            crafted.tensor(name, &[WIDTH, WIDTH]);
        }
        crafted
    }

    /// Appends an F32 tensor.
    pub fn tensor(&mut self, name: &str, dims: &[u64]) {
        let offset = self.data.next_multiple_of(ALIGNMENT);
        let bytes: u64 = dims.iter().product::<u64>() * 4;
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), ty: F32_TENSOR, offset: offset as u64 });
        self.data = offset + bytes as usize;
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.claimed_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.claimed_facts.unwrap_or(self.facts.len() as u64).to_le_bytes());
        for (key, ty, value) in &self.facts {
            bytes.extend(string(key));
            bytes.extend(ty.to_le_bytes());
            bytes.extend(value);
        }
        for tensor in &self.tensors {
            bytes.extend(string(&tensor.name));
            bytes.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(tensor.ty.to_le_bytes());
            bytes.extend(tensor.offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT) + self.data, 0);
        bytes.truncate(self.cut.unwrap_or(bytes.len()));
        bytes
    }
}

/// Files that must be refused, each with its defect.
pub fn bad_files() -> Vec<(&'static str, Vec<u8>)> {
    let with = |change: &dyn Fn(&mut Crafted)| {
        let mut crafted = Crafted::sound();
        change(&mut crafted);
        crafted.bytes()
    };
    let nested = |depth: usize| {
        let mut value = Vec::new();
        for _ in 0..depth {
            value.extend(ARRAY.to_le_bytes());
            value.extend(1u64.to_le_bytes());
        }
        value.extend(U32.to_le_bytes());
        value.extend(0u64.to_le_bytes());
        value
    };
    let huge_array = [U32.to_le_bytes().as_slice(), (1u64 << 30).to_le_bytes().as_slice()].concat();
    vec![
        ("an empty file", Vec::new()),
        ("a wrong magic", with(&|file| file.magic = *b"GGML")),
        ("an unknown version", with(&|file| file.version = 99)),
        ("a header cut off", with(&|file| file.cut = Some(100))),
        ("tensor data cut off", {
            let bytes = with(&|_| ());
            bytes[..bytes.len() - 64].to_vec()
        }),
        ("alignment 0", with(&|file| file.facts.push(("general.alignment".into(), U32, vec![0; 4])))),
        ("alignment 3", with(&|file| file.facts.push(("general.alignment".into(), U32, vec![3, 0, 0, 0])))),
        ("a shape of 2^40 squared", with(&|file| file.tensors[1].dims = vec![1 << 40, 1 << 40])),
        ("a shape of 2^40", with(&|file| file.tensors[1].dims = vec![1 << 40])),
        ("a shape with a zero", with(&|file| file.tensors[1].dims = vec![0, WIDTH])),
        ("five axes", with(&|file| file.tensors[1].dims = vec![1; 5])),
        ("4,096 axes", with(&|file| file.tensors[1].dims = vec![1; 4096])),
        ("an offset past the end", with(&|file| file.tensors[2].offset = 1 << 40)),
        ("an offset that overflows", with(&|file| file.tensors[2].offset = u64::MAX - 31)),
        ("an offset that is not aligned", with(&|file| file.tensors[2].offset += 1)),
        ("a duplicate tensor", with(&|file| file.tensors[2].name = file.tensors[1].name.clone())),
        ("overlapping tensors", with(&|file| file.tensors[2].offset = file.tensors[1].offset)),
        ("an unknown tensor type", with(&|file| file.tensors[1].ty = 4_000)),
        ("an unknown value type", with(&|file| file.facts.push(("odd".into(), 77, vec![0; 8])))),
        ("arrays nested 1,000 deep", with(&|file| file.facts.push(("deep".into(), ARRAY, nested(1_000))))),
        ("an array of 2^30 numbers", with(&|file| file.facts.push(("long".into(), ARRAY, huge_array.clone())))),
        ("2^60 key-values", with(&|file| file.claimed_facts = Some(1 << 60))),
        ("2^60 tensors", with(&|file| file.claimed_tensors = Some(1 << 60))),
        ("a string of 2^62 bytes", {
            with(&|file| file.facts.push(("text".into(), STRING, (1u64 << 62).to_le_bytes().to_vec())))
        }),
        ("a layer without its tensors", with(&|file| file.facts[1].2 = 9u32.to_le_bytes().to_vec())),
    ]
}
