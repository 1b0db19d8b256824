//! Length-prefixed messages out of and into chunks.
//!
//! A message is a flag byte, four bytes of big-endian length, and that many bytes (gRPC over HTTP/2,
//! "Length-Prefixed-Message"); DATA frames cut it anywhere. The [`Deframer`] holds no memory between messages: a message
//! that lies whole in one chunk is handed on as a slice of it, and only one that is cut is copied together. Nothing is
//! reserved because a peer announced it: the length is judged from the prefix alone, and the copy grows by what arrived.

use bytes::{Buf, Bytes};

use super::status::{Code, Status};

/// Flag and length in front of each message.
pub const PREFIX_BYTES: usize = 5;

/// The prefix of an uncompressed message. `None` when it is longer than the 4 GiB that the prefix can say.
pub fn prefix(message_bytes: usize) -> Option<[u8; PREFIX_BYTES]> {
    let length = u32::try_from(message_bytes).ok()?.to_be_bytes();
    Some([0, length[0], length[1], length[2], length[3]])
}

/// The messages that lie whole at the start of a chunk in which a message begins. A look ahead: nothing is judged.
pub fn whole_messages(mut chunk: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&[_, length @ ..], rest) = chunk.split_first_chunk::<PREFIX_BYTES>()?;
        let (message, rest) = rest.split_at_checked(u32::from_be_bytes(length) as usize)?;
        chunk = rest;
        Some(message)
    })
}

/// Why a message cannot be taken. Each ends its call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The flag says "compressed" in a call that announced no encoding.
    Compressed,
    /// A flag that the specification does not have.
    UnknownFlag(u8),
    TooLarge {
        length: u32,
        length_max: u32,
    },
}

impl FrameError {
    /// The words of grpc-go, on which clients of etcd match.
    pub fn status(self) -> Status {
        match self {
            FrameError::Compressed => {
                Status::new(Code::Internal, "grpc: compressed flag set with identity or empty encoding")
            }
            FrameError::UnknownFlag(flag) => {
                Status::new(Code::Internal, format!("grpc: received unexpected payload format {flag}"))
            }
            FrameError::TooLarge { length, length_max } => Status::new(
                Code::ResourceExhausted,
                format!("grpc: received message larger than max ({length} vs. {length_max})"),
            ),
        }
    }
}

/// Puts the messages of one call together.
#[derive(Debug, Default)]
pub struct Deframer {
    /// Present only while a message is cut.
    partial: Option<Box<Partial>>,
}

#[derive(Debug, Default)]
struct Partial {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: u8,
    body: Vec<u8>,
}

impl Deframer {
    /// Takes the next whole message out of `chunk`, or all of `chunk` and nothing. Call again until it gives `None`.
    ///
    /// # Errors
    /// When the prefix cannot be accepted. The call is over then, and the deframer must not be asked again.
    pub fn next(&mut self, chunk: &mut Bytes, length_max: u32) -> Result<Option<Bytes>, FrameError> {
        if self.partial.is_none() {
            if chunk.is_empty() {
                return Ok(None);
            }
            if let Some(&prefix) = chunk.first_chunk::<PREFIX_BYTES>() {
                let length = judge(prefix, length_max)? as usize;
                if chunk.len() - PREFIX_BYTES >= length {
                    chunk.advance(PREFIX_BYTES);
                    return Ok(Some(chunk.split_to(length)));
                }
            }
        }
        self.continue_partial(chunk, length_max)
    }

    fn continue_partial(&mut self, chunk: &mut Bytes, length_max: u32) -> Result<Option<Bytes>, FrameError> {
        let partial = self.partial.get_or_insert_default();
        let have = usize::from(partial.prefix_bytes);
        if have < PREFIX_BYTES {
            let taken = chunk.len().min(PREFIX_BYTES - have);
            chunk.copy_to_slice(&mut partial.prefix[have..have + taken]);
            partial.prefix_bytes += taken as u8;
            if have + taken < PREFIX_BYTES {
                return Ok(None);
            }
        }
        let length = judge(partial.prefix, length_max)? as usize;
        let taken = chunk.len().min(length - partial.body.len());
        partial.body.extend_from_slice(&chunk[..taken]);
        chunk.advance(taken);
        if partial.body.len() < length {
            return Ok(None);
        }
        let partial = self.partial.take().expect("it was filled above");
        Ok(Some(partial.body.into()))
    }

    /// The next chunk begins with a message.
    pub fn is_between_messages(&self) -> bool {
        self.partial.is_none()
    }

    /// The body of a message has begun, or is due, and is not whole yet. A cut prefix does not count: grpc-go takes an
    /// end there for the end of the messages.
    pub fn is_amid_message(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| usize::from(partial.prefix_bytes) == PREFIX_BYTES)
    }

    /// What is held for the message that is cut, in bytes.
    pub fn bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| size_of::<Partial>() + partial.body.capacity())
    }
}

fn judge(prefix: [u8; PREFIX_BYTES], length_max: u32) -> Result<u32, FrameError> {
    let [flag, length @ ..] = prefix;
    match flag {
        0 => {}
        1 => return Err(FrameError::Compressed),
        flag => return Err(FrameError::UnknownFlag(flag)),
    }
    let length = u32::from_be_bytes(length);
    if length > length_max {
        return Err(FrameError::TooLarge { length, length_max });
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_look_ahead_sees_what_will_be_handed_on_whole() {
        let (messages, bytes) =
            ([&b"one"[..], b"", b"three"], [framed(b"one"), framed(b""), framed(b"three")].concat());
        for end in 0..=bytes.len() {
            let seen: Vec<&[u8]> = whole_messages(&bytes[..end]).collect();
            let mut chunk = Bytes::copy_from_slice(&bytes[..end]);
            let mut deframer = Deframer::default();
            let whole: Vec<Bytes> = std::iter::from_fn(|| deframer.next(&mut chunk, 100).unwrap()).collect();
            assert_eq!(
                (seen, &messages[..whole.len()]),
                (whole.iter().map(|one| &one[..]).collect(), &messages[..whole.len()])
            );
        }
        assert_eq!(whole_messages(&[0, 0xff, 0xff, 0xff, 0xff, 1]).count(), 0);
    }

    /// Lengths and positions.
    struct Lengths(Random);

    impl Lengths {
        fn below(&mut self, bound: usize) -> usize {
            self.0.below(bound as u64) as usize
        }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut bytes = prefix(message.len()).unwrap().to_vec();
        bytes.extend_from_slice(message);
        bytes
    }

    #[test]
    fn messages_cut_anywhere_come_out_whole_and_nothing_is_held_between_them() {
        for seed in 0..300 {
            let mut random = Lengths(Random::new(seed));
            let messages: Vec<Vec<u8>> =
                (0..random.below(20)).map(|index| vec![index as u8; random.below(200) * random.below(4)]).collect();
            let mut rest = Bytes::from(messages.iter().flat_map(|message| framed(message)).collect::<Vec<_>>());
            let mut deframer = Deframer::default();
            let mut got = Vec::new();
            while !rest.is_empty() {
                let cut = 1 + random.below(rest.len().min(100));
                let mut chunk = rest.split_to(cut);
                while let Some(message) = deframer.next(&mut chunk, 1_000).unwrap() {
                    got.push(message.to_vec());
                }
                assert!(chunk.is_empty(), "seed {seed}");
            }
            assert_eq!(got, messages, "seed {seed}");
            assert!(!deframer.is_amid_message(), "seed {seed}");
            assert_eq!(deframer.bytes(), 0, "seed {seed}");
        }
    }

    #[test]
    fn random_bytes_never_panic_and_never_hold_more_than_arrived() {
        for seed in 0..2_000 {
            let mut random = Lengths(Random::new(seed));
            let mut deframer = Deframer::default();
            let mut arrived = 0;
            'call: for _ in 0..50 {
                let mut chunk: Bytes =
                    (0..random.below(64)).map(|_| (random.below(8) * random.below(40)) as u8).collect();
                arrived += chunk.len();
                loop {
                    match deframer.next(&mut chunk, 1 << 20) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'call,
                    }
                }
                assert!(deframer.bytes() <= size_of::<Partial>() + 2 * arrived + 64, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_from_its_prefix_alone() {
        let mut deframer = Deframer::default();
        let mut chunk = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
        let error = deframer.next(&mut chunk, 2_097_152).unwrap_err();
        assert_eq!(deframer.bytes(), 0);
        assert_eq!(error.status().code, Code::ResourceExhausted);
        assert_eq!(error.status().message, "grpc: received message larger than max (4294967295 vs. 2097152)");
        let at_the_limit = &mut Bytes::from(framed(&[7; 10]));
        assert_eq!(Deframer::default().next(at_the_limit, 10).unwrap().unwrap().len(), 10);
    }

    #[test]
    fn compressed_and_unknown_flags_are_refused() {
        for (flag, error) in [(1, FrameError::Compressed), (2, FrameError::UnknownFlag(2))] {
            let chunk = &mut Bytes::from(vec![flag, 0, 0, 0, 0]);
            assert_eq!(Deframer::default().next(chunk, 10), Err(error));
        }
    }
}
