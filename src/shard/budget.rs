//! How much memory the process may hold, and what is refused as it comes near.
//!
//! Each shard counts what it holds as it comes and goes ([`super::accounting`]) and tells the sum here, in a cell of its
//! own: one relaxed store a turn, and a load of each other shard's, so that there is no lock and no line of the cache that
//! two threads write. What it hears is its *room*, and it hands that on as bounds to what can grow: the hub, the store, the
//! scratch of reads, the listener. Rooms are shares of what is left, so that all shards together cannot pass the limit by
//! using theirs in the same turn.
//!
//! | used, of the limit | what happens |
//! | --- | --- |
//! | 70% | a line in the log |
//! | 85% | another; from here on caches shrink, step by step to nothing: recent history of the hubs, events gathered for late watchers, what is queued for one stream before its watchers fall behind; and freed memory is returned each few seconds, as it is wherever puts are refused |
//! | 94% | new watches are created and canceled, new connections are turned away, large ranges and puts are refused |
//! | 97% | new watch streams are refused |
//!
//! The last sixteenth is for what goes on: keep-alives, deletes, compactions, events of the watches that are held.
//!
//! What nobody counts (what the allocator keeps back, batches that the checkpoint has yet to write, a cost that was
//! estimated too low) is found by looking: it is what is resident beyond the sum, and it is used like the rest. So a wrong
//! estimate makes the server refuse early, and not meet the OOM killer. A shard that turns looks a hundred times a second, at
//! 3 us each ([`Looks`]): with one look a second, a client that put values of a megabyte and compacted them was faster.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Room of a process without a limit: more than any machine has, and far from overflow when others are added to it.
const UNLIMITED: usize = usize::MAX / 4;
/// What the checkpoint takes to write what was put: the batches of one commit, and the pages of its database. With a small
/// limit no more than a quarter of it is kept free for that.
const CHECKPOINT_BYTES: usize = 48 << 20;
/// Caches in full, in [`Standing::caches`].
pub const CACHES_FULL: usize = 256;
/// How long a shard that turns goes by what was resident before.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// It looks at once when it counts so much less than it did: what it has let go of is room when it is no longer resident, and
/// somebody else may still hold it. After a compaction of 28 MB that the checkpoint had yet to write, a put was admitted in the
/// milliseconds until the next look, and what came behind it was refused.
const FREED_BYTES_LOOK: usize = 1 << 20;
/// One line a level in this time.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// What the shards of a process share about its memory.
#[derive(Debug)]
pub struct Budget {
    limit: Option<usize>,
    /// What the process took before its first client.
    base: AtomicUsize,
    /// What is resident and counted nowhere, as of the last look.
    uncounted: AtomicUsize,
    shards: Box<[Told]>,
}

/// What one shard told last. On a line of the cache of its own, since each shard writes its own all the time.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Told {
    resident: AtomicUsize,
    /// In the kernel, for sockets: part of the cgroup's memory, and not of what is resident.
    sockets: AtomicUsize,
}

/// How far from the limit the process is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    #[default]
    Plenty,
    /// Above 70%.
    Noticed,
    /// Above 85%.
    Pressed,
    /// No room for anything new.
    Full,
}

/// What a shard may do until it looks again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// What this shard may add in one place.
    pub room: usize,
    /// The same for the store: less, by what the checkpoint takes to write what was put.
    pub store_room: usize,
    /// The same for what carries the refusals: a watch stream must be there before its watches can be refused on it. Half of
    /// what is set aside.
    pub reserve: usize,
    /// The part of their size that caches may have, of [`CACHES_FULL`].
    pub caches: usize,
}

impl Budget {
    /// `None`: there is no limit.
    pub fn new(limit: Option<usize>, shards: usize) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            base: AtomicUsize::new(0),
            uncounted: AtomicUsize::new(0),
            shards: (0..shards).map(|_| Told::default()).collect(),
        })
    }

    pub fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// An even share of the limit for each shard.
    pub fn share(&self) -> Option<usize> {
        self.limit.map(|limit| limit / self.shards.len())
    }

    pub fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    pub fn set_base(&self, bytes: usize) {
        self.base.store(bytes, Ordering::Relaxed);
    }

    /// What this shard holds by now, and what it may add to it.
    pub fn tell(&self, shard: usize, resident: usize, sockets: usize) -> Standing {
        self.shards[shard].resident.store(resident, Ordering::Relaxed);
        self.shards[shard].sockets.store(sockets, Ordering::Relaxed);
        self.standing()
    }

    pub fn standing(&self) -> Standing {
        let Some(limit) = self.limit else {
            let (room, store_room, reserve) = (UNLIMITED, UNLIMITED, UNLIMITED);
            return Standing { room, store_room, reserve, caches: CACHES_FULL };
        };
        let used = self.used();
        let room = full_at(limit).saturating_sub(used);
        // Below the line where they begin to shrink, what is left of the way to the full is more than the whole of it.
        let way = (full_at(limit) - pressed_at(limit)).max(1);
        let caches = (room as u128 * CACHES_FULL as u128 / way as u128).min(CACHES_FULL as u128) as usize;
        // Twice: a shard has a hub beside its connections, and the writer's has the store.
        let share = |bytes: usize| bytes / (2 * self.shards.len());
        let reserve = (limit - limit / 32).saturating_sub(used);
        let store_room = room.saturating_sub(CHECKPOINT_BYTES.min(limit / 4));
        Standing { room: share(room), store_room: share(store_room), reserve: share(reserve), caches }
    }

    fn resident(&self) -> usize {
        let told = self.shards.iter().map(|shard| shard.resident.load(Ordering::Relaxed));
        self.base.load(Ordering::Relaxed) + told.sum::<usize>()
    }

    /// Everything: what is counted, what is not, and the sockets.
    pub fn used(&self) -> usize {
        let sockets = self.shards.iter().map(|shard| shard.sockets.load(Ordering::Relaxed));
        self.resident() + self.uncounted.load(Ordering::Relaxed) + sockets.sum::<usize>()
    }

    /// What the kernel says is resident. What of it is counted nowhere counts from here on as well.
    pub fn look(&self, resident: usize) {
        self.uncounted.store(resident.saturating_sub(self.resident()), Ordering::Relaxed);
    }

    pub fn uncounted(&self) -> usize {
        self.uncounted.load(Ordering::Relaxed)
    }

    /// Something is refused or shrinks for want of memory. With a small limit puts are, long before anything else: then
    /// what is freed and still resident is worth a search.
    pub fn is_short(&self) -> bool {
        self.standing().store_room == 0 || self.level() >= Level::Pressed
    }

    pub fn level(&self) -> Level {
        let (Some(limit), used) = (self.limit, self.used()) else { return Level::Plenty };
        match used {
            used if used >= full_at(limit) => Level::Full,
            used if used >= pressed_at(limit) => Level::Pressed,
            used if used >= limit / 10 * 7 => Level::Noticed,
            _ => Level::Plenty,
        }
    }
}

fn pressed_at(limit: usize) -> usize {
    limit / 20 * 17
}

fn full_at(limit: usize) -> usize {
    limit - limit / 16
}

/// When a shard asks the kernel how much is resident.
#[derive(Debug, Default)]
pub struct Looks {
    /// The time of the last one, and the most that the shard has counted since.
    last: Option<(Instant, usize)>,
}

impl Looks {
    /// `counted`: what the shard counts by now. It looks when this says so.
    pub fn is_due(&mut self, now: Instant, counted: usize) -> bool {
        if let Some((at, most)) = &mut self.last
            && now.duration_since(*at) < LOOK_INTERVAL
            && counted + FREED_BYTES_LOOK > *most
        {
            *most = counted.max(*most);
            return false;
        }
        self.last = Some((now, counted));
        true
    }
}

/// Which levels are worth a line in the log: each as it is reached, and none twice in a minute.
#[derive(Debug, Default)]
pub struct Herald {
    level: Level,
    told: [Option<Instant>; 4],
}

impl Herald {
    pub fn look(&mut self, now: Instant, level: Level) -> Option<Level> {
        let before = std::mem::replace(&mut self.level, level);
        let told = &mut self.told[level as usize];
        let is_news = match level {
            // That there is room again matters to whoever read that there was none.
            Level::Plenty => before > level,
            _ => level > before,
        };
        let is_due = told.is_none_or(|at| now.duration_since(at) >= LINE_INTERVAL);
        (is_news && is_due).then(|| {
            *told = Some(now);
            level
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_shard_holds_takes_from_the_room_of_all() {
        let budget = Budget::new(Some(1_600), 2);
        budget.set_base(100);
        assert_eq!(budget.tell(0, 400, 0), Standing { room: 250, store_room: 150, reserve: 262, caches: CACHES_FULL });
        assert_eq!(budget.tell(1, 500, 100).room, 100);
        assert_eq!(budget.tell(0, 400, 0).room, 100);
        assert_eq!((budget.used(), budget.level()), (1_100, Level::Plenty));
        assert_eq!(budget.tell(0, 820, 0), Standing { room: 0, store_room: 0, reserve: 7, caches: 0 });
        assert_eq!(budget.level(), Level::Full);
        assert_eq!(budget.tell(0, 0, 0).room, 200, "what is freed is room again");
        assert!(!budget.is_short());
        assert_eq!(budget.tell(0, 450, 0), Standing { room: 87, store_room: 0, reserve: 100, caches: CACHES_FULL });
        assert!(budget.is_short() && budget.level() < Level::Pressed, "puts are refused first");
        let unlimited = Budget::new(None, 1);
        assert!(unlimited.tell(0, 1 << 40, 0).room > 1 << 40);
        assert!(unlimited.level() == Level::Plenty && !unlimited.is_short());
    }

    #[test]
    fn what_is_resident_and_not_counted_is_used_too() {
        let budget = Budget::new(Some(1_600), 1);
        budget.tell(0, 500, 50);
        budget.look(900);
        assert_eq!((budget.uncounted(), budget.used()), (400, 950));
        budget.look(300);
        assert_eq!((budget.uncounted(), budget.used()), (0, 550), "an estimate that is too high stays");
    }

    #[test]
    fn a_look_is_due_when_the_last_is_old_or_much_was_let_go_of_since() {
        let (mut looks, start) = (Looks::default(), Instant::now());
        let mut is_due =
            |milliseconds, mebibytes: usize| looks.is_due(start + Duration::from_millis(milliseconds), mebibytes << 20);
        assert!(is_due(0, 10), "the first");
        assert!(!is_due(9, 10) && !is_due(9, 30));
        assert!(is_due(9, 29), "the most that was counted since");
        assert!(!is_due(9, 29) && !is_due(10, 30));
        assert!(is_due(19, 30), "it is old");
        assert!(!is_due(28, 30) && is_due(28, 0));
    }

    #[test]
    fn caches_shrink_step_by_step_between_the_second_line_and_the_full() {
        let budget = Budget::new(Some(160_000), 1);
        let caches = |used| budget.tell(0, used, 0).caches;
        assert_eq!((caches(0), caches(136_000)), (CACHES_FULL, CACHES_FULL));
        assert_eq!((caches(143_000), caches(149_999), caches(150_000)), (CACHES_FULL / 2, 0, 0));
        let mut before = CACHES_FULL;
        for used in (136_000..150_000).step_by(100) {
            assert!(caches(used) <= before);
            before = caches(used);
        }
    }

    #[test]
    fn a_level_is_told_as_it_is_reached_and_once_a_minute() {
        let (mut herald, start) = (Herald::default(), Instant::now());
        let mut look = |seconds, level| herald.look(start + Duration::from_secs(seconds), level);
        assert_eq!(look(0, Level::Plenty), None);
        assert_eq!(look(1, Level::Noticed), Some(Level::Noticed));
        assert_eq!(look(2, Level::Full), Some(Level::Full));
        assert_eq!(look(3, Level::Noticed), None);
        assert_eq!(look(4, Level::Full), None, "it was told just now");
        assert_eq!(look(5, Level::Plenty), Some(Level::Plenty));
        assert_eq!(look(70, Level::Full), Some(Level::Full));
        assert_eq!(look(200, Level::Full), None, "it never went");
    }
}
