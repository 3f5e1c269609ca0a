//! Output of a CLI in each of the dialects: however it is cut, the same answer and the same verdict come out.
#![no_main]

use thawd::provider::{Dialect, DialectParser, Verdict};

const DIALECTS: [Dialect; 5] =
    [Dialect::CodexExecJson, Dialect::ClaudeStreamJson, Dialect::GeminiStreamJson, Dialect::Text, Dialect::Plain];

fn read<'a>(dialect: Dialect, pieces: impl Iterator<Item = &'a [u8]>) -> (String, Verdict) {
    let mut parser = DialectParser::new(dialect);
    let answer = pieces.flat_map(|piece| parser.push(piece)).collect();
    (answer, parser.finish())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [which, size, rest @ ..] = data else { return };
    let dialect = DIALECTS[usize::from(*which) % DIALECTS.len()];
    let whole = read(dialect, std::iter::once(rest));
    let cut = read(dialect, rest.chunks(usize::from(*size) + 1));
    assert_eq!(format!("{whole:?}"), format!("{cut:?}"));
    // What a restart does with a parser in the middle.
    let (before, after) = rest.split_at(rest.len() / 2);
    let mut parser = DialectParser::new(dialect);
    let mut answer: String = parser.push(before).concat();
    let kept = serde_json::to_string(&parser).expect("it can be kept");
    let mut parser: DialectParser = serde_json::from_str(&kept).expect("and read again");
    answer += &parser.push(after).concat();
    assert_eq!(format!("{whole:?}"), format!("{:?}", (answer, parser.finish())));
});
