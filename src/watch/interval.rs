//! Which spans hold a key.
//!
//! A balanced (AVL) tree by start and end; every node knows the range with the farthest end below it, so a search leaves
//! out whole subtrees that end too early. It holds indexes of groups and never their bytes: those it asks for. AVL because
//! its depth is bounded whatever clients insert; priorities drawn from a counter could be played against.

use std::cmp::Ordering;

use crate::types::arena::Arena;

const NONE: u32 = u32::MAX;
/// An AVL tree of as many nodes as have a number is 46 deep.
const DEPTH_MAX: usize = 48;

/// Whoever keeps the bytes of the ranges.
pub trait Bounds {
    fn span(&self, group: u32) -> Span<'_>;
}

#[derive(Clone, Copy)]
pub struct Span<'a> {
    pub start: &'a [u8],
    /// The first key behind the range; `None` is past every key.
    pub end: Option<&'a [u8]>,
}

impl Span<'_> {
    fn ends_behind(&self, key: &[u8]) -> bool {
        self.end.is_none_or(|end| key < end)
    }

    fn compare(&self, other: Span<'_>) -> Ordering {
        self.start.cmp(other.start).then_with(|| self.compare_ends(other))
    }

    /// No end is farther than any end.
    fn compare_ends(&self, other: Span<'_>) -> Ordering {
        match (self.end, other.end) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(one), Some(other)) => one.cmp(other),
        }
    }
}

struct Node {
    left: u32,
    right: u32,
    group: u32,
    /// The group whose end lies farthest in this subtree.
    farthest: u32,
    height: u8,
}

/// Spans, each with one group. Two spans that are equal are one entry; [`Interval::replace`] changes its group.
pub struct Interval {
    nodes: Arena<Node>,
    root: u32,
}

impl Interval {
    pub fn new() -> Interval {
        Interval { nodes: Arena::new(), root: NONE }
    }

    pub fn bytes(&self) -> usize {
        self.nodes.bytes()
    }

    /// Adds a span that is not yet in it.
    pub fn insert(&mut self, bounds: &impl Bounds, group: u32) {
        let span = bounds.span(group);
        let mut path = [(NONE, Ordering::Equal); DEPTH_MAX];
        let (mut depth, mut at) = (0, self.root);
        while at != NONE {
            let order = self.admit(bounds, at, group, span);
            path[depth] = (at, order);
            depth += 1;
            at = if order == Ordering::Less { self.nodes[at].left } else { self.nodes[at].right };
        }
        let mut below = self.nodes.insert(Node { left: NONE, right: NONE, group, farthest: group, height: 1 });
        while depth > 0 {
            depth -= 1;
            let (at, order) = path[depth];
            let node = &mut self.nodes[at];
            let height = node.height;
            *(if order == Ordering::Less { &mut node.left } else { &mut node.right }) = below;
            below = self.rotated(bounds, at).unwrap_or(at);
            if below == at {
                self.set_height(at);
                if self.nodes[at].height == height {
                    // Above, nothing changes any more.
                    return;
                }
            }
        }
        self.root = below;
    }

    /// A span is to come below this node: on which side, and what ends farthest there from now on. On the way down, since
    /// one look at the span in place does for both mostly: behind what it is before, or ends before, nothing is farther.
    fn admit(&mut self, bounds: &impl Bounds, at: u32, group: u32, span: Span<'_>) -> Ordering {
        let node = &mut self.nodes[at];
        let own = bounds.span(node.group);
        let order = span.compare(own);
        assert_ne!(order, Ordering::Equal, "equal spans are interned before they get here");
        let is_farther = |other| span.compare_ends(other) == Ordering::Greater;
        if is_farther(own) && (node.group == node.farthest || is_farther(bounds.span(node.farthest))) {
            node.farthest = group;
        }
        order
    }

    /// Takes out the span of this group, whose bytes must still be there.
    pub fn remove(&mut self, bounds: &impl Bounds, group: u32) {
        self.root = self.remove_below(bounds, self.root, group);
    }

    /// Puts `new` in the place of `old`; both have the same span, and the bytes of both are still there.
    pub fn replace(&mut self, bounds: &impl Bounds, old: u32, new: u32) {
        let mut at = self.root;
        loop {
            assert_ne!(at, NONE, "the span of a group in place is in the tree");
            let node = &mut self.nodes[at];
            if node.farthest == old {
                node.farthest = new;
            }
            match bounds.span(new).compare(bounds.span(node.group)) {
                Ordering::Less => at = node.left,
                Ordering::Greater => at = node.right,
                Ordering::Equal => {
                    assert_eq!(node.group, old, "the entry of a span names its first group");
                    node.group = new;
                    return;
                }
            }
        }
    }

    /// Names the group of every span that holds `key`, in the order of the spans, until `found` says false: then it gives
    /// that group. `behind` leaves out what comes up to the span of a group; that may be gone from here, but not its bytes.
    pub fn stab(
        &self,
        bounds: &impl Bounds,
        key: &[u8],
        behind: Option<u32>,
        found: &mut impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        self.stab_below(bounds, self.root, key, behind, found)
    }

    /// The depth bounds the recursion: at most 1.44 log2 of the number of spans.
    fn stab_below(
        &self,
        bounds: &impl Bounds,
        at: u32,
        key: &[u8],
        behind: Option<u32>,
        found: &mut impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        if at == NONE {
            return None;
        }
        let node = &self.nodes[at];
        if !bounds.span(node.farthest).ends_behind(key) {
            return None;
        }
        let own = bounds.span(node.group);
        if behind.is_some_and(|group| own.compare(bounds.span(group)) != Ordering::Greater) {
            return self.stab_below(bounds, node.right, key, behind, found);
        }
        let last = self.stab_below(bounds, node.left, key, behind, found);
        if last.is_some() || own.start > key {
            return last;
        }
        if own.ends_behind(key) && !found(node.group) {
            return Some(node.group);
        }
        self.stab_below(bounds, node.right, key, None, found)
    }

    fn remove_below(&mut self, bounds: &impl Bounds, at: u32, group: u32) -> u32 {
        assert_ne!(at, NONE, "the span of a group in place is in the tree");
        match bounds.span(group).compare(bounds.span(self.nodes[at].group)) {
            Ordering::Less => {
                let left = self.remove_below(bounds, self.nodes[at].left, group);
                self.nodes[at].left = left;
            }
            Ordering::Greater => {
                let right = self.remove_below(bounds, self.nodes[at].right, group);
                self.nodes[at].right = right;
            }
            Ordering::Equal => {
                let Node { left, right, .. } = self.nodes.remove(at);
                if right == NONE {
                    return left;
                }
                let (first, rest) = self.take_first(bounds, right);
                self.nodes[first].left = left;
                self.nodes[first].right = rest;
                self.refresh(bounds, first);
                return self.rotated(bounds, first).unwrap_or(first);
            }
        }
        self.balance_without(bounds, at, group)
    }

    /// Takes the smallest node out of a subtree; gives it and what is left.
    fn take_first(&mut self, bounds: &impl Bounds, at: u32) -> (u32, u32) {
        let left = self.nodes[at].left;
        if left == NONE {
            return (at, self.nodes[at].right);
        }
        let (first, rest) = self.take_first(bounds, left);
        self.nodes[at].left = rest;
        let group = self.nodes[first].group;
        (first, self.balance_without(bounds, at, group))
    }

    fn height(&self, at: u32) -> i32 {
        if at == NONE { 0 } else { i32::from(self.nodes[at].height) }
    }

    fn lean(&self, at: u32) -> i32 {
        self.height(self.nodes[at].left) - self.height(self.nodes[at].right)
    }

    /// Below this node one group is gone. Of any other it may still be that it ends farthest.
    fn balance_without(&mut self, bounds: &impl Bounds, at: u32, gone: u32) -> u32 {
        if self.nodes[at].farthest == gone {
            self.refresh(bounds, at);
        } else {
            self.set_height(at);
        }
        self.rotated(bounds, at).unwrap_or(at)
    }

    /// The node that comes to the place of one whose sides differ too much.
    fn rotated(&mut self, bounds: &impl Bounds, at: u32) -> Option<u32> {
        let Node { left, right, .. } = self.nodes[at];
        let lean = self.lean(at);
        if lean > 1 {
            if self.lean(left) < 0 {
                self.nodes[at].left = self.rotate_left(bounds, left);
            }
            return Some(self.rotate_right(bounds, at));
        }
        if lean < -1 {
            if self.lean(right) > 0 {
                self.nodes[at].right = self.rotate_right(bounds, right);
            }
            return Some(self.rotate_left(bounds, at));
        }
        None
    }

    fn rotate_left(&mut self, bounds: &impl Bounds, at: u32) -> u32 {
        let up = self.nodes[at].right;
        self.nodes[at].right = self.nodes[up].left;
        self.nodes[up].left = at;
        self.refresh(bounds, at);
        self.refresh(bounds, up);
        up
    }

    fn rotate_right(&mut self, bounds: &impl Bounds, at: u32) -> u32 {
        let up = self.nodes[at].left;
        self.nodes[at].left = self.nodes[up].right;
        self.nodes[up].right = at;
        self.refresh(bounds, at);
        self.refresh(bounds, up);
        up
    }

    /// Recomputes what a node knows of its subtree.
    fn refresh(&mut self, bounds: &impl Bounds, at: u32) {
        let Node { left, right, group, .. } = self.nodes[at];
        let mut farthest = group;
        for child in [left, right] {
            if child != NONE {
                let other = self.nodes[child].farthest;
                if bounds.span(other).compare_ends(bounds.span(farthest)) == Ordering::Greater {
                    farthest = other;
                }
            }
        }
        self.nodes[at].farthest = farthest;
        self.set_height(at);
    }

    fn set_height(&mut self, at: u32) {
        let Node { left, right, .. } = self.nodes[at];
        self.nodes[at].height = (1 + self.height(left).max(self.height(right))) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    impl Bounds for Vec<(Vec<u8>, Option<Vec<u8>>)> {
        fn span(&self, group: u32) -> Span<'_> {
            let (start, end) = &self[group as usize];
            Span { start, end: end.as_deref() }
        }
    }

    fn key(random: &mut Random) -> Vec<u8> {
        (0..random.below(4)).map(|_| b'a' + random.below(4) as u8).collect()
    }

    /// Gives the height and the groups below.
    fn check_below(tree: &Interval, at: u32, spans: &impl Bounds) -> (i32, Vec<u32>) {
        if at == NONE {
            return (0, Vec::new());
        }
        let node = &tree.nodes[at];
        let ((left, mut groups), (right, others)) =
            (check_below(tree, node.left, spans), check_below(tree, node.right, spans));
        assert!((left - right).abs() <= 1, "balanced");
        assert_eq!(i32::from(node.height), 1 + left.max(right));
        groups.extend(others);
        groups.push(node.group);
        let is_farther = |other: &u32| spans.span(*other).compare_ends(spans.span(node.farthest)) == Ordering::Greater;
        assert!(groups.contains(&node.farthest) && !groups.iter().any(is_farther), "the farthest of those below");
        (1 + left.max(right), groups)
    }

    #[test]
    fn a_stab_finds_what_a_look_at_every_span_finds() {
        for seed in 0..60 {
            let random = &mut Random::new(seed);
            let mut spans: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
            let mut present: Vec<u32> = Vec::new();
            let mut tree = Interval::new();
            for _ in 0..400 {
                let span = (key(random), (random.below(5) > 0).then(|| key(random)));
                let twin = present.iter().position(|group| spans[*group as usize] == span);
                spans.push(span);
                let group = spans.len() as u32 - 1;
                match twin {
                    Some(twin) => {
                        tree.replace(&spans, present[twin], group);
                        present[twin] = group;
                    }
                    None => {
                        tree.insert(&spans, group);
                        present.push(group);
                    }
                }
                if random.below(3) == 0 {
                    let gone = present.swap_remove(random.below(present.len() as u64) as usize);
                    tree.remove(&spans, gone);
                }
                check_below(&tree, tree.root, &spans);
                let key = key(random);
                let mut found = Vec::new();
                let (mut last, piece) = (None, 1 + random.below(4) as usize);
                loop {
                    let end = found.len() + piece;
                    let found_one = &mut |group| {
                        found.push(group);
                        found.len() < end
                    };
                    last = tree.stab(&spans, &key, last, found_one);
                    if last.is_none() {
                        break;
                    }
                    assert_eq!((last, end), (found.last().copied(), found.len()), "seed {seed}");
                }
                assert!(
                    found.is_sorted_by(|one, other| spans.span(*one).compare(spans.span(*other)) == Ordering::Less),
                    "seed {seed}"
                );
                found.sort_unstable();
                let holds = |group: &u32| {
                    let (start, end) = &spans[*group as usize];
                    *start <= key && end.as_ref().is_none_or(|end| key < *end)
                };
                let mut expected: Vec<u32> = present.iter().copied().filter(holds).collect();
                expected.sort_unstable();
                assert_eq!(found, expected, "seed {seed}");
                assert_eq!(tree.nodes.len(), present.len());
            }
        }
    }
}
