//! Which spans hold a key.
//!
//! A balanced (AVL) tree by start and end; every node knows the range with the farthest end below it, so a search leaves
//! out whole subtrees that end too early. It holds indexes of groups and never their bytes: those it asks for. AVL because
//! its depth is bounded whatever clients insert; priorities drawn from a counter could be played against.

use std::cmp::Ordering;
use std::hint::black_box;

use crate::types::arena::Arena;

const NONE: u32 = u32::MAX;
/// An AVL tree of as many nodes as have a number is 46 deep.
const DEPTH_MAX: usize = 48;

/// Whoever keeps the bytes of the ranges.
pub trait Bounds {
    fn span(&self, group: u32) -> Span<'_>;

    /// The span is about to be asked for.
    fn foresee(&self, _group: u32) {}
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
    /// Of both sides, so that whether they differ too much is known without a look at either.
    left_height: u8,
    right_height: u8,
}

impl Node {
    fn height(&self) -> u8 {
        1 + self.left_height.max(self.right_height)
    }

    /// By how much the left side is higher.
    fn lean(&self) -> i32 {
        i32::from(self.left_height) - i32::from(self.right_height)
    }
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
            let node = &self.nodes[at];
            let order = span.compare(bounds.span(node.group));
            assert_ne!(order, Ordering::Equal, "equal spans are interned before they get here");
            path[depth] = (at, order);
            depth += 1;
            // A branch, and no conditional move: where it guesses right, the processor has the next node on its way before it
            // knows this one.
            at = if order == Ordering::Less {
                black_box(());
                node.left
            } else {
                node.right
            };
        }
        self.admit(bounds, &path[..depth], group, span);
        let new = Node { left: NONE, right: NONE, group, farthest: group, left_height: 0, right_height: 0 };
        let (mut below, mut below_height) = (self.nodes.insert(new), 1);
        while depth > 0 {
            depth -= 1;
            let (at, order) = path[depth];
            let node = &mut self.nodes[at];
            let height = node.height();
            if order == Ordering::Less {
                (node.left, node.left_height) = (below, below_height);
            } else {
                (node.right, node.right_height) = (below, below_height);
            }
            (below, below_height) = self.balanced(bounds, at);
            if below == at && below_height == height {
                // Above, nothing changes any more.
                return;
            }
        }
        self.root = below;
    }

    /// A span comes below these nodes, which may make it what ends farthest there. From below: where it does not end farthest,
    /// it does not do so above, so that two looks do on average.
    fn admit(&mut self, bounds: &impl Bounds, path: &[(u32, Ordering)], group: u32, span: Span<'_>) {
        for (at, _) in path.iter().rev() {
            let node = &mut self.nodes[*at];
            if span.compare_ends(bounds.span(node.farthest)) != Ordering::Greater {
                return;
            }
            node.farthest = group;
        }
    }

    /// Looks at what [`Interval::insert`] of these spans will look at on its way down, at all of them level by level: see
    /// [`super::foresight`].
    pub fn foresee<const N: usize>(&self, bounds: &impl Bounds, spans: &[Option<Span<'_>>; N]) {
        let mut at = spans.map(|span| if span.is_some() { self.root } else { NONE });
        // The depth bounds it.
        while at.iter().any(|at| *at != NONE) {
            let groups = at.map(|at| if at == NONE { NONE } else { self.nodes[at].group });
            for group in groups.into_iter().filter(|group| *group != NONE) {
                bounds.foresee(group);
            }
            for (at, span) in at.iter_mut().zip(spans) {
                let (Some(span), Some(node)) = (span, self.nodes.get(*at)) else { continue };
                let children = [node.left, node.right];
                *at = children[usize::from(span.compare(bounds.span(node.group)) == Ordering::Greater)];
            }
        }
    }

    /// Takes out the span of this group, whose bytes must still be there.
    pub fn remove(&mut self, bounds: &impl Bounds, group: u32) {
        (self.root, _) = self.remove_below(bounds, self.root, group);
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

    /// Gives what is left of the subtree, and its height.
    fn remove_below(&mut self, bounds: &impl Bounds, at: u32, group: u32) -> (u32, u8) {
        assert_ne!(at, NONE, "the span of a group in place is in the tree");
        match bounds.span(group).compare(bounds.span(self.nodes[at].group)) {
            Ordering::Less => {
                let (left, height) = self.remove_below(bounds, self.nodes[at].left, group);
                let node = &mut self.nodes[at];
                (node.left, node.left_height) = (left, height);
            }
            Ordering::Greater => {
                let (right, height) = self.remove_below(bounds, self.nodes[at].right, group);
                let node = &mut self.nodes[at];
                (node.right, node.right_height) = (right, height);
            }
            Ordering::Equal => {
                let Node { left, right, left_height, .. } = self.nodes.remove(at);
                if right == NONE {
                    return (left, left_height);
                }
                let (first, (rest, rest_height)) = self.take_first(bounds, right);
                let node = &mut self.nodes[first];
                (node.left, node.left_height) = (left, left_height);
                (node.right, node.right_height) = (rest, rest_height);
                self.refresh(bounds, first);
                return self.balanced(bounds, first);
            }
        }
        self.balance_without(bounds, at, group)
    }

    /// Takes the smallest node out of a subtree; gives it and what is left, with its height.
    fn take_first(&mut self, bounds: &impl Bounds, at: u32) -> (u32, (u32, u8)) {
        let Node { left, right, right_height, .. } = self.nodes[at];
        if left == NONE {
            return (at, (right, right_height));
        }
        let (first, (rest, height)) = self.take_first(bounds, left);
        let node = &mut self.nodes[at];
        (node.left, node.left_height) = (rest, height);
        let group = self.nodes[first].group;
        (first, self.balance_without(bounds, at, group))
    }

    /// Below this node one group is gone. Of any other it may still be that it ends farthest.
    fn balance_without(&mut self, bounds: &impl Bounds, at: u32, gone: u32) -> (u32, u8) {
        if self.nodes[at].farthest == gone {
            self.refresh(bounds, at);
        }
        self.balanced(bounds, at)
    }

    /// The node that comes to the place of this one, and the height from there on: another one when its sides differ too much.
    fn balanced(&mut self, bounds: &impl Bounds, at: u32) -> (u32, u8) {
        let Node { left, right, .. } = self.nodes[at];
        let lean = self.nodes[at].lean();
        let at = if lean > 1 {
            if self.nodes[left].lean() < 0 {
                self.nodes[at].left = self.rotate_left(bounds, left);
            }
            self.rotate_right(bounds, at)
        } else if lean < -1 {
            if self.nodes[right].lean() > 0 {
                self.nodes[at].right = self.rotate_right(bounds, right);
            }
            self.rotate_left(bounds, at)
        } else {
            at
        };
        (at, self.nodes[at].height())
    }

    fn rotate_left(&mut self, bounds: &impl Bounds, at: u32) -> u32 {
        let up = self.nodes[at].right;
        let Node { left: between, left_height, .. } = self.nodes[up];
        let node = &mut self.nodes[at];
        (node.right, node.right_height) = (between, left_height);
        let height = node.height();
        (self.nodes[up].left, self.nodes[up].left_height) = (at, height);
        self.rotated(bounds, at, up);
        up
    }

    fn rotate_right(&mut self, bounds: &impl Bounds, at: u32) -> u32 {
        let up = self.nodes[at].left;
        let Node { right: between, right_height, .. } = self.nodes[up];
        let node = &mut self.nodes[at];
        (node.left, node.left_height) = (between, right_height);
        let height = node.height();
        (self.nodes[up].right, self.nodes[up].right_height) = (at, height);
        self.rotated(bounds, at, up);
        up
    }

    /// `up` has come above `at`: below it is now what was below that, and ends as far.
    fn rotated(&mut self, bounds: &impl Bounds, at: u32, up: u32) {
        self.nodes[up].farthest = self.nodes[at].farthest;
        self.refresh(bounds, at);
    }

    /// Finds out anew what ends farthest in a subtree.
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
        assert_eq!((i32::from(node.left_height), i32::from(node.right_height)), (left, right));
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
