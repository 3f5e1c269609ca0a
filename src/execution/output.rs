//! Bytes from a pipe into `stdout` and `stderr` events.

use base64::Engine;

use crate::types::{Encoding, Output};

/// Cuts a byte stream into pieces that are valid UTF-8 where the stream is: a character that arrives in two reads is
/// held back until it is whole.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Start of a character, at most 3 bytes.
    pending: Vec<u8>,
}

impl Decoder {
    /// What can be said after `bytes` arrived.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Output> {
        let mut all = std::mem::take(&mut self.pending);
        all.extend_from_slice(bytes);
        if let Err(error) = std::str::from_utf8(&all)
            && error.error_len().is_none()
        {
            self.pending = all.split_off(error.valid_up_to());
        }
        output(all)
    }

    /// What was held back when the stream ended.
    pub fn finish(&mut self) -> Option<Output> {
        output(std::mem::take(&mut self.pending))
    }
}

fn output(bytes: Vec<u8>) -> Option<Output> {
    if bytes.is_empty() {
        return None;
    }
    Some(match String::from_utf8(bytes) {
        Ok(data) => Output { data, encoding: None },
        Err(error) => Output {
            data: base64::engine::general_purpose::STANDARD.encode(error.into_bytes()),
            encoding: Some(Encoding::Base64),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::Decoder;
    use crate::types::Encoding;

    #[test]
    fn a_split_character_is_held_back_until_it_is_whole() {
        let mut decoder = Decoder::default();
        let euro = "€".as_bytes();
        assert_eq!(decoder.push(&[b'a', euro[0]]).unwrap().data, "a");
        assert!(decoder.push(&euro[1..2]).is_none());
        assert_eq!(decoder.push(&[euro[2], b'b']).unwrap().data, "€b");
        assert!(decoder.finish().is_none());
    }

    #[test]
    fn other_bytes_survive_as_base64() {
        let mut decoder = Decoder::default();
        let output = decoder.push(&[0xff, 0, b'\r']).unwrap();
        assert_eq!((output.encoding, output.data.as_str()), (Some(Encoding::Base64), "/wAN"));
        assert!(decoder.push(&[0xe2]).is_none());
        assert_eq!(decoder.finish().unwrap().data, "4g==", "an unfinished character is not lost at the end");
    }
}
