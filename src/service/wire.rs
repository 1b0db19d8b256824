//! The wire format of Protocol Buffers, read field by field without building anything.
//!
//! For the two places where generated messages cost too much: the look at a transaction before it is built, and the
//! watch requests of a client that creates a million of them. It knows no message; it accepts and refuses exactly what
//! prost does with fields of the same types, so that what is read here and decoded there is judged alike.

/// Bytes that are not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// What stands in a field, by its wire type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// A fixed-width number or a group. No field of the API has these types, so a reader can only skip it.
    Other,
}

impl<'a> Value<'a> {
    /// # Errors
    /// When the field is of another wire type. (Go's decoder skips such a field as an unknown one; prost refuses it,
    /// and no client of the API sends it.)
    pub fn varint(self) -> Result<u64, Malformed> {
        if let Value::Varint(number) = self { Ok(number) } else { Err(Malformed) }
    }

    /// # Errors
    /// As [`Value::varint`].
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        if let Value::Bytes(bytes) = self { Ok(bytes) } else { Err(Malformed) }
    }
}

/// How deep prost lets messages and groups nest.
pub const DEPTH_MAX: u32 = 100;

/// The fields of one message, in the order of the wire.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
    /// How much deeper messages and groups may nest.
    depth_left: u32,
}

impl<'a> Fields<'a> {
    pub fn new(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message, depth_left: DEPTH_MAX }
    }

    /// The fields of a message that stands in a field of this one.
    ///
    /// # Errors
    /// When it nests too deep.
    pub fn nested(&self, message: &'a [u8]) -> Result<Fields<'a>, Malformed> {
        if self.depth_left == 0 {
            return Err(Malformed);
        }
        Ok(Fields { rest: message, depth_left: self.depth_left - 1 })
    }

    /// The number and value of the next field; none at the end of the message.
    ///
    /// # Errors
    /// When the rest is no field. The reader is of no use after that.
    #[inline]
    pub fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = key(&mut self.rest)?;
        let value = match wire_type {
            0 => Value::Varint(varint(&mut self.rest)?),
            2 => {
                let len = varint(&mut self.rest)?;
                Value::Bytes(take(&mut self.rest, len)?)
            }
            _ => {
                skip(&mut self.rest, number, wire_type, self.depth_left)?;
                Value::Other
            }
        };
        Ok(Some((number, value)))
    }
}

/// The numbers of a repeated field that is packed into one value.
///
/// # Errors
/// When a number is cut or too long.
pub fn packed(mut numbers: &[u8], mut each: impl FnMut(u64)) -> Result<(), Malformed> {
    while !numbers.is_empty() {
        each(varint(&mut numbers)?);
    }
    Ok(())
}

/// Field number and wire type. Numbers are at least 1 and keys fit 32 bits.
fn key(rest: &mut &[u8]) -> Result<(u32, u8), Malformed> {
    let key = u32::try_from(varint(rest)?).map_err(|_| Malformed)?;
    if key >> 3 == 0 || key & 7 > 5 {
        return Err(Malformed);
    }
    Ok((key >> 3, (key & 7) as u8))
}

/// At most ten bytes, the last of which adds one bit.
#[inline]
fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for (at, &byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (at * 7);
        if byte < 0x80 {
            if at == 9 && byte > 1 {
                return Err(Malformed);
            }
            *rest = &rest[at + 1..];
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn take<'a>(rest: &mut &'a [u8], len: u64) -> Result<&'a [u8], Malformed> {
    let len = usize::try_from(len).map_err(|_| Malformed)?;
    let (taken, left) = rest.split_at_checked(len).ok_or(Malformed)?;
    *rest = left;
    Ok(taken)
}

/// Steps over a field. The recursion is bounded by `depth_left`, which starts at [`DEPTH_MAX`].
fn skip(rest: &mut &[u8], number: u32, wire_type: u8, depth_left: u32) -> Result<(), Malformed> {
    if depth_left == 0 {
        return Err(Malformed);
    }
    match wire_type {
        0 => varint(rest).map(drop),
        1 => take(rest, 8).map(drop),
        2 => {
            let len = varint(rest)?;
            take(rest, len).map(drop)
        }
        3 => loop {
            let (inner, inner_type) = key(rest)?;
            match inner_type {
                4 if inner == number => return Ok(()),
                4 => return Err(Malformed),
                _ => skip(rest, inner, inner_type, depth_left - 1)?,
            }
        },
        5 => take(rest, 4).map(drop),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::service::random::Random;

    /// A message without fields, so that prost skips everything.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Empty {}

    fn accepts(message: &[u8]) -> bool {
        let mut fields = Fields::new(message);
        loop {
            match fields.next() {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(Malformed) => return false,
            }
        }
    }

    #[test]
    fn what_prost_skips_is_read_and_nothing_else() {
        for seed in 0..200_000 {
            let mut random = Random::new(seed);
            let message = random.junk(24);
            assert_eq!(accepts(&message), Empty::decode(&message[..]).is_ok(), "seed {seed}: {message:02x?}");
        }
    }

    #[test]
    fn groups_nest_as_deep_as_prost_lets_them() {
        for depth in 1..=DEPTH_MAX as usize + 3 {
            let mut message = vec![0x0b; depth];
            message.extend(vec![0x0c; depth]);
            assert_eq!(accepts(&message), Empty::decode(&message[..]).is_ok(), "depth {depth}");
        }
        assert!(!accepts(&vec![0x0b; 2_000_000]), "no stack is used up");
    }

    #[test]
    fn a_varint_has_at_most_64_bits() {
        let mut largest = vec![0xff; 9];
        largest.push(1);
        assert_eq!(varint(&mut &largest[..]), Ok(u64::MAX));
        *largest.last_mut().unwrap() = 2;
        assert_eq!(varint(&mut &largest[..]), Err(Malformed));
        assert_eq!(varint(&mut &[0x80; 11][..]), Err(Malformed));
        assert_eq!(varint(&mut &[0x80][..]), Err(Malformed));
    }
}
