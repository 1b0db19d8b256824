//! How large a scene is: as its flag says, or its usual size, of which `--quick` takes a tenth.

use crate::server::Side;

/// Whether a run is one for trying out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quick(pub bool);

impl Quick {
    /// What somebody asked for is theirs, quick or not.
    pub fn size(self, asked: Option<u32>, usual: u32) -> u32 {
        asked.unwrap_or(if self.0 { usual / 10 } else { usual }).max(1)
    }

    /// The same for a size that each side has of its own: what was asked and what is usual, of etcd and of tarsier.
    pub fn size_of_side(self, side: Side, etcd: (Option<u32>, u32), tarsier: (Option<u32>, u32)) -> u32 {
        let (asked, usual) = if side == Side::Etcd { etcd } else { tarsier };
        self.size(asked, usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_asked_for_is_a_tenth() {
        assert_eq!(Quick(true).size(None, 5_000), 500);
        assert_eq!(Quick(true).size(Some(5_000), 5_000), 5_000);
        assert_eq!(Quick(false).size(None, 5_000), 5_000);
        assert_eq!(Quick(true).size(None, 1), 1);
        assert_eq!(Quick(true).size_of_side(Side::Tarsier, (Some(7), 100), (None, 200)), 20);
    }
}
