//! A tiny program made of nothing but system calls, to try from inside a container what busybox cannot.
//!
//! The test image holds no C library and no compiler, so the program is assembled here: an ELF file that makes the
//! given calls one after the other, writes their results to standard output and exits.

use base64::Engine;
use thaw_client::types::ExecutionRequest;

/// Where the file is loaded: what linkers use for x86-64.
const BASE: u64 = 0x40_0000;
/// Sizes of the ELF header and of its one program header (elf(5)).
const HEADERS: u64 = 64 + 56;

/// An argument of a system call.
#[derive(Debug, Clone)]
pub enum Value {
    /// A number.
    Number(u64),
    /// The address of these bytes, which the call may overwrite.
    Data(Vec<u8>),
    /// The result of an earlier call, by its index.
    Result(usize),
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Number(i64::from(number) as u64)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&[u8]> for Value {
    fn from(data: &[u8]) -> Self {
        Self::Data(data.to_vec())
    }
}

impl From<&std::ffi::CStr> for Value {
    fn from(text: &std::ffi::CStr) -> Self {
        Self::Data(text.to_bytes_with_nul().to_vec())
    }
}

/// System calls in order.
#[derive(Debug, Default)]
pub struct Program {
    calls: Vec<(i64, Vec<Value>)>,
    /// Begin with a call of the 32-bit interface.
    begin_with_32_bit: bool,
}

impl Program {
    /// Adds a call (`libc::SYS_*`); returns its index.
    pub fn call(&mut self, number: i64, arguments: &[Value]) -> usize {
        self.calls.push((number, arguments.to_vec()));
        self.calls.len() - 1
    }

    /// A program that asks for its process id through the 32-bit interface (`int 0x80`), which has numbers of its own.
    pub fn with_32_bit_call() -> Self {
        Self { begin_with_32_bit: true, ..Self::default() }
    }

    /// The request that runs it.
    pub fn request(&self) -> ExecutionRequest {
        let file = base64::engine::general_purpose::STANDARD.encode(self.elf());
        super::shell(&format!("echo {file} | base64 -d > /tmp/program && chmod 700 /tmp/program && exec /tmp/program"))
    }

    /// The results that it wrote: 0 or more, or a negative error number.
    pub fn results(&self, stdout: &[u8]) -> Vec<i64> {
        assert_eq!(stdout.len(), 8 * self.calls.len(), "the program did not come to its end");
        stdout.chunks(8).map(|chunk| i64::from_le_bytes(chunk.try_into().unwrap())).collect()
    }

    /// The file itself.
    pub fn elf(&self) -> Vec<u8> {
        // Every instruction has the same length whatever the addresses are, so a first pass tells the size.
        let code_size = self.code(0, 0).0.len() as u64;
        let data_at = BASE + HEADERS + code_size;
        let data_size = self.code(0, 0).1.len() as u64;
        let (code, data) = self.code(data_at, data_at + data_size);
        let file_size = HEADERS + code_size + data_size;

        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        for half in [2u16, 62] {
            file.extend(half.to_le_bytes()); // An executable for x86-64.
        }
        file.extend(1u32.to_le_bytes());
        for word in [BASE + HEADERS, 64, 0] {
            file.extend(word.to_le_bytes()); // Entry point, program headers, no section headers.
        }
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 1, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for word in [1u32, 7] {
            file.extend(word.to_le_bytes()); // To be loaded; readable, writable, executable.
        }
        for word in [0, BASE, BASE, file_size, file_size + 8 * self.calls.len() as u64, 4096] {
            file.extend(word.to_le_bytes());
        }
        file.extend(code);
        file.extend(data);
        file
    }

    /// Machine code and data, for data and results at these addresses.
    fn code(&self, data_at: u64, results_at: u64) -> (Vec<u8>, Vec<u8>) {
        let (mut code, mut data) = (Vec::new(), Vec::new());
        // rdi, rsi, rdx, r10, r8, r9 (syscall(2)): `mov REGISTER, imm64`, and `mov REGISTER, rax`.
        const LOAD: [[u8; 2]; 6] = [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba], [0x49, 0xb8], [0x49, 0xb9]];
        const COPY: [[u8; 3]; 6] = [
            [0x48, 0x89, 0xc7],
            [0x48, 0x89, 0xc6],
            [0x48, 0x89, 0xc2],
            [0x49, 0x89, 0xc2],
            [0x49, 0x89, 0xc0],
            [0x49, 0x89, 0xc1],
        ];
        if self.begin_with_32_bit {
            code.extend([0xb8, 20, 0, 0, 0]); // mov eax, 20: getpid
            code.extend([0xcd, 0x80]); // int 0x80
        }
        let call = |code: &mut Vec<u8>, number: u64| {
            code.extend([0x48, 0xb8]); // mov rax, imm64
            code.extend(number.to_le_bytes());
            code.extend([0x0f, 0x05]); // syscall
        };
        for (index, (number, arguments)) in self.calls.iter().enumerate() {
            for (place, argument) in arguments.iter().enumerate() {
                let value = match argument {
                    Value::Number(value) => *value,
                    Value::Data(bytes) => {
                        let address = data_at + data.len() as u64;
                        data.extend(bytes);
                        data.resize(data.len().next_multiple_of(8), 0);
                        address
                    }
                    Value::Result(of) => {
                        code.extend([0x48, 0xa1]); // mov rax, [address]
                        code.extend((results_at + 8 * *of as u64).to_le_bytes());
                        code.extend(COPY[place]);
                        continue;
                    }
                };
                code.extend(LOAD[place]);
                code.extend(value.to_le_bytes());
            }
            call(&mut code, *number as u64);
            code.extend([0x48, 0xa3]); // mov [address], rax
            code.extend((results_at + 8 * index as u64).to_le_bytes());
        }
        for (number, arguments) in
            [(libc::SYS_write, vec![1, results_at, 8 * self.calls.len() as u64]), (libc::SYS_exit_group, vec![0])]
        {
            for (place, value) in arguments.into_iter().enumerate() {
                code.extend(LOAD[place]);
                code.extend(u64::to_le_bytes(value));
            }
            call(&mut code, number as u64);
        }
        (code, data)
    }
}
