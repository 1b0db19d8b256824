//! The members of one group.
//!
//! Groups grow together: while clients create their watches, thousands of groups pass through every size there is. One
//! buffer a group, moved from size class to size class, left pages of each class behind, held by the few groups that had
//! stayed there: with 200,000 groups of 50 members that was 64 MB beside 90 MB in use. So a list consists of blocks of
//! one size, which are never moved, and an index of them.
//!
//! A lone member lies in the group itself, and up to eight lie in one block that grows by doubling. Blocks are filled from
//! the front; what is behind the last member holds [`NOBODY`]. The number of more than eight stands in the group: to find
//! it in the blocks cost two misses of the cache for each of the ten million watches of a mass exit, 60% of all its time.

use std::hint::black_box;

/// One watching: the row of its stream, and its row in the list of that stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub stream: u32,
    pub row: u32,
}

/// No stream has that row.
const NOBODY: Member = Member { stream: u32::MAX, row: u32::MAX };

/// Members in a block: 64 bytes, a size class of the allocator and a line of the cache.
const BLOCK: usize = 8;
/// Blocks up to which the index doubles. From there on it grows by a quarter at most.
const DOUBLING_BLOCKS_MAX: usize = 16;

type Block = Box<[Member; BLOCK]>;

pub enum Members {
    /// One, or `NOBODY`: most groups on keys of their own have one member, which then costs no allocation.
    Lone(Member),
    /// Two, four or eight places.
    Few(Box<[Member]>),
    /// Blocks, then places for more; and the number of members.
    Many(Box<[Option<Block>]>, u32),
}

impl Members {
    pub const fn new() -> Members {
        Members::Lone(NOBODY)
    }

    pub fn len(&self) -> usize {
        match self {
            Members::Lone(member) => usize::from(*member != NOBODY),
            Members::Few(members) => used(members),
            Members::Many(_, len) => *len as usize,
        }
    }

    /// A member is about to be added.
    pub fn foresee(&self) {
        match self {
            Members::Lone(_) => {}
            Members::Few(members) => _ = black_box(members.last().copied()),
            Members::Many(blocks, len) => _ = black_box(blocks.get(*len as usize / BLOCK).map(Option::is_some)),
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Members::Lone(NOBODY))
    }

    pub fn get(&self, at: usize) -> Option<Member> {
        #[cfg(test)]
        looks::count(1);
        let place = match self {
            Members::Lone(member) => (at == 0).then_some(member),
            Members::Few(members) => members.get(at),
            Members::Many(blocks, _) => blocks.get(at / BLOCK)?.as_ref().map(|block| &block[at % BLOCK]),
        };
        place.copied().filter(|member| *member != NOBODY)
    }

    /// Where a member is, by a look at all of them, block by block.
    pub fn position(&self, member: Member) -> Option<usize> {
        let is_it = |other: &Member| {
            #[cfg(test)]
            looks::count(1);
            *other == member
        };
        match self {
            Members::Lone(other) => is_it(other).then_some(0),
            Members::Few(members) => members.iter().position(is_it),
            Members::Many(blocks, _) => blocks
                .iter()
                .flatten()
                .enumerate()
                .find_map(|(at, block)| block.iter().position(is_it).map(|place| at * BLOCK + place)),
        }
    }

    /// What they take beside the group itself.
    pub fn bytes(&self) -> usize {
        match self {
            Members::Lone(_) => 0,
            Members::Few(members) => size_of_val(&**members),
            Members::Many(blocks, len) => {
                size_of_val(&**blocks) + (*len as usize).div_ceil(BLOCK) * size_of::<[Member; BLOCK]>()
            }
        }
    }

    pub fn push(&mut self, member: Member) {
        debug_assert_ne!(member, NOBODY, "a row of a stream is below the last number");
        let len = self.len();
        match self {
            Members::Lone(place) if *place == NOBODY => *place = member,
            Members::Lone(first) => *self = Members::Few(Box::new([*first, member])),
            Members::Few(members) if len < members.len() => members[len] = member,
            Members::Few(members) => {
                let full = std::mem::take(members);
                *self = match <Block>::try_from(full) {
                    Ok(block) => Members::Many(Box::new([Some(block), Some(new_block(member))]), BLOCK as u32 + 1),
                    Err(few) => Members::Few(resized(few, len * 2, NOBODY, Some(member))),
                };
            }
            Members::Many(blocks, count) => {
                *count += 1;
                match blocks.get_mut(len / BLOCK) {
                    Some(Some(block)) => block[len % BLOCK] = member,
                    Some(place) => *place = Some(new_block(member)),
                    None => {
                        let index = std::mem::take(blocks).into_vec();
                        *blocks = grown_index(index, new_block(member));
                    }
                }
            }
        }
    }

    /// Takes a member out; the last one takes its place.
    ///
    /// # Panics
    /// When there is none at this place.
    pub fn swap_remove(&mut self, at: usize) -> Member {
        let member = self.get(at).expect("a member is taken out by the place it was found at");
        let last = self.len() - 1;
        *self.place(at) = self.get(last).expect("a list with a member has a last one");
        *self.place(last) = NOBODY;
        self.shrink(last);
        member
    }

    fn place(&mut self, at: usize) -> &mut Member {
        match self {
            Members::Lone(member) => member,
            Members::Few(members) => &mut members[at],
            Members::Many(blocks, _) => {
                let block = blocks[at / BLOCK].as_mut().expect("blocks stand in front of the places for more");
                &mut block[at % BLOCK]
            }
        }
    }

    /// The last member is out. Gives room back, with as much left as saves the next few from asking for it again.
    fn shrink(&mut self, len: usize) {
        match self {
            Members::Lone(_) => {}
            Members::Few(_) if len <= 1 => *self = Members::Lone(self.get(0).unwrap_or(NOBODY)),
            Members::Few(members) if len * 4 <= members.len() => {
                *members = std::mem::take(members)[..len * 2].into();
            }
            Members::Few(_) => {}
            Members::Many(blocks, count) => {
                *count -= 1;
                if len.is_multiple_of(BLOCK) {
                    blocks[len / BLOCK] = None;
                }
                if len == BLOCK {
                    let block = blocks[0].take().expect("eight members fill the first block");
                    *self = Members::Few(block);
                } else if len.is_multiple_of(BLOCK) && len / BLOCK * 4 <= blocks.len() {
                    let mut index = std::mem::take(blocks).into_vec();
                    index.truncate(index.len() / 2);
                    *blocks = index.into_boxed_slice();
                }
            }
        }
    }
}

fn used(members: &[Member]) -> usize {
    members.iter().take_while(|member| **member != NOBODY).count()
}

fn new_block(first: Member) -> Block {
    let mut block = Box::new([NOBODY; BLOCK]);
    block[0] = first;
    block
}

/// A full list with room for more behind it, the first of which is `next`.
fn resized(full: Box<[Member]>, len: usize, filler: Member, next: Option<Member>) -> Box<[Member]> {
    let mut members = full.into_vec();
    members.reserve_exact(len - members.len());
    members.extend(next);
    members.resize(len, filler);
    members.into_boxed_slice()
}

fn grown_index(mut index: Vec<Option<Block>>, next: Block) -> Box<[Option<Block>]> {
    let len = index.len();
    let len_after = if len < DOUBLING_BLOCKS_MAX { len * 2 } else { grown(len) };
    index.reserve_exact(len_after - len);
    index.push(Some(next));
    index.resize_with(len_after, || None);
    index.into_boxed_slice()
}

/// The capacity that a full list of `len` eight-byte entries grows to: the next size class of the allocator, of which
/// there are eight and then four a doubling. Doubling would leave a third of the memory empty on average.
pub fn grown(len: usize) -> usize {
    if len < 8 {
        return len + 1;
    }
    let step = (len.next_power_of_two() / 8).max(1);
    let step = if len.is_power_of_two() { step * 2 } else { step };
    (len / step + 1) * step
}

/// How many members this thread has looked at: what a step costs, whatever machine the tests run on.
#[cfg(test)]
pub mod looks {
    use std::cell::Cell;

    thread_local! {
        static LOOKS: Cell<u64> = const { Cell::new(0) };
    }

    pub fn count(looks: u64) {
        LOOKS.set(LOOKS.get() + looks);
    }

    /// Those since the last call.
    pub fn take() -> u64 {
        LOOKS.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn member(row: u32) -> Member {
        Member { stream: 7, row }
    }

    #[test]
    fn a_list_holds_what_a_vector_holds_through_growth_and_shrinking() {
        for seed in 0..40 {
            let random = &mut Random::new(seed);
            let (mut members, mut expected) = (Members::new(), Vec::new());
            for step in 0..3_000_u32 {
                // It grows, and shrinks to nothing, and grows again.
                let growing = step / 500 % 2 == 0;
                if expected.is_empty() || (random.below(10) < 7) == growing {
                    members.push(member(step));
                    expected.push(member(step));
                } else {
                    let at = random.below(expected.len() as u64) as usize;
                    assert_eq!(members.swap_remove(at), expected.swap_remove(at), "seed {seed}");
                }
                assert_eq!((members.len(), members.is_empty()), (expected.len(), expected.is_empty()), "seed {seed}");
                assert_eq!(members.get(expected.len()), None, "seed {seed}");
                if step % 10 == 0 {
                    for (at, member) in expected.iter().enumerate() {
                        assert_eq!(
                            (members.get(at), members.position(*member)),
                            (Some(*member), Some(at)),
                            "seed {seed}"
                        );
                    }
                    assert_eq!(members.position(member(u32::MAX - 1)), None, "seed {seed}");
                }
            }
            while !expected.is_empty() {
                assert_eq!(members.swap_remove(0), expected.swap_remove(0), "seed {seed}");
            }
            assert_eq!(members.bytes(), 0, "seed {seed}");
        }
    }

    #[test]
    fn a_member_takes_ten_bytes_in_a_group_of_fifty_and_less_than_ten_in_a_large_one() {
        let mut members = Members::new();
        let mut bytes = Vec::new();
        for row in 0..1_000_000 {
            members.push(member(row));
            if [1, 2, 8, 9, 50, 1_000, 1_000_000].contains(&(row + 1)) {
                bytes.push(members.bytes());
            }
        }
        assert_eq!(bytes, [0, 16, 64, 144, 512, 9_024, 9_048_576]);
        assert_eq!(size_of::<Members>(), 24);
    }

    #[test]
    fn lists_grow_in_steps_of_a_quarter_at_most() {
        let (mut capacity, mut steps) = (1, 0);
        while capacity < 10_000_000 {
            let next = grown(capacity);
            assert!(next > capacity && (next - capacity) * 4 <= capacity.max(4), "{capacity} to {next}");
            (capacity, steps) = (next, steps + 1);
        }
        assert!(steps < 120, "growing stays amortised: {steps} steps");
    }
}
